"""The page of language models: loss against size and compute, every size from one dense run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from orthotrain.lab.experiments.language.columns import (
    CUTS,
    SEED_NUMBERS,
    as_ratio,
    bits,
    compute,
    costs,
    cut_of,
    results,
    was_cut,
)
from orthotrain.lab.experiments.language.first_figure import FIRST_FIGURE, above, family_style
from orthotrain.lab.experiments.language.kinds import (
    at,
    branches,
    kind_of,
    of_family,
    percents,
)
from orthotrain.lab.experiments.ranks import ranks_table
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.claims import Claim, each
from orthotrain.lab.report.default import pairs_with_baseline
from orthotrain.lab.report.figures import Curves, Panel
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.measures import result
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.rows import field, text
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.style import LineStyle, Look, Theme
from orthotrain.lab.report.tables import BySeed, ByVariant, Compared, Own

# --- claims -------------------------------------------------------------------------------------


def _claims(run: Run) -> list[Claim]:
    loss = (bits(run),)
    # Sizes of one aim differ a little by construction, which is no cost to be told.
    beside = (as_ratio(compute(run)), replace(sizes(run)[1], better=""))

    def claim(question: str, pairs: Sequence[tuple[Variant, Variant]], note: str = "") -> Claim:
        named = tuple((ours.name, other.name) for ours, other in pairs)
        return Claim(question, named, loss, beside, note=note)

    ratio = "The compute is compared as a ratio, the dense run left out."
    claims = [
        claim(
            f"Is a branch of {percent} % better than a narrow network from scratch?",
            _beside(run, _all_branches, "narrow", percent), ratio,
        )
        for percent in percents(run)
    ]  # fmt: skip
    claims += [
        claim(
            "Is a branch better than a narrow network with as much compute?",
            _every(run, _nearest("narrow-short"), "narrow-short"),
            f"At each size the branch whose compute is nearest. {ratio}",
        ),
        claim(
            "Is a branch better than a narrow network with the same teacher?",
            _every(run, branches, "narrow-teacher"), ratio,
        ),
        claim(
            "Is a branch better than one with the same teacher and as much compute?",
            _every(run, _nearest("narrow-teacher-short"), "narrow-teacher-short"),
            f"At each size the branch whose compute is nearest. {ratio}",
        ),
        claim("Does the teacher help the branch?", _with_teacher(run)),
        claim(
            "Is a cut at half of the run better than a narrow network from scratch?",
            _every(run, _of("half"), "narrow"), ratio,
        ),
        claim(
            "Are frozen bases better with both repairs, and as good as trained ones?",
            _every(run, _of("frozen"), "frozen-plain") + _every(run, _of("frozen"), "half"),
        ),
    ]  # fmt: skip
    base = run.baseline
    if base is not None:
        lower = Claim(f"Which variants have a lower loss than {base.title}?",
                      each(run.variants, base), loss)  # fmt: skip
        claims.append(lower)
    return [one for one in claims if one.pairs]


_Ours = Callable[[Run, int], Sequence[Variant]]


def _of(family: str) -> _Ours:
    return lambda run, percent: [v for v in (at(run, family, percent),) if v is not None]


def _all_branches(run: Run, percent: int) -> Sequence[Variant]:
    return [*branches(run, percent), *_of("branch-alone")(run, percent)]


def _nearest(family: str) -> _Ours:
    """The branch whose compute is nearest to that of a family; all where that is unknown."""

    def chosen(run: Run, percent: int) -> Sequence[Variant]:
        mine, other, work = branches(run, percent), at(run, family, percent), compute(run)
        goal = math.nan if other is None else work.mean(other)
        known = [v for v in mine if work.mean(v) > 0]
        if not (known and goal > 0):
            return mine
        return [min(known, key=lambda v: abs(math.log(work.mean(v) / goal)))]

    return chosen


def _beside(run: Run, ours: _Ours, family: str, percent: int) -> list[tuple[Variant, Variant]]:
    other = at(run, family, percent)
    return [] if other is None else [(variant, other) for variant in ours(run, percent)]


def _every(run: Run, ours: _Ours, family: str) -> list[tuple[Variant, Variant]]:
    return [pair for percent in percents(run) for pair in _beside(run, ours, family, percent)]


def _with_teacher(run: Run) -> list[tuple[Variant, Variant]]:
    return [
        (taught, alone)
        for alone in of_family(run, "branch-alone")
        for taught in branches(run, kind_of(alone).percent)
        if kind_of(taught).steps == kind_of(alone).steps
    ]


# --- further figures ----------------------------------------------------------------------------


def _switch(variant: Variant) -> float:
    return result("switch_step", "").mean(variant)


def _curves(run: Run) -> list[Panel]:
    """A panel per size, and one for the published method and its repairs."""

    def panel(title: str, chosen: Callable[[Variant], bool]) -> Panel:
        def mine(run: Run) -> Sequence[Variant]:
            return [v for v in run.variants if v is run.baseline or chosen(v)]

        return Panel(
            title,
            "eval",
            field("bits"),
            mine,
            bins=None,
            late="top",
            most=above(run, 1.5),
            mark=_switch,
        )

    def of_size(percent: int) -> Callable[[Variant], bool]:
        return lambda v: kind_of(v).percent == percent and not _frozen(v)

    panels = [panel(f"{p} % stored (bits per byte)", of_size(p)) for p in percents(run)]
    if any(map(_frozen, run.variants)):
        panels.append(panel("Frozen bases (bits per byte)", _frozen))
    return [one for one in panels if one.curves(run)]


def _frozen(variant: Variant) -> bool:
    family = kind_of(variant).family
    return family.startswith("frozen") or (kind_of(variant).percent == 0 and family != "dense")


_FIGURES: Final = (
    Curves(
        "curves", "Learning curves",
        "Loss on the validation files over the steps of each training itself: a branch begins "
        "where the dense run ended. Dotted lines: the mean step of a cut. The axis ends above "
        "the rivals that matter; what ends further up is named at its edge.",
        _curves, missing="No loss on validation files was recorded.",
    ),
)  # fmt: skip


# --- looks ----------------------------------------------------------------------------------------


def _look(run: Run, theme: Theme) -> dict[str, Look]:
    """The color of the family; of several branches of a size, one line style each."""
    lines: Sequence[LineStyle] = ("-", "--", "-.")
    chosen = {}
    for variant in run.variants:
        _, color, _, line = family_style(variant)
        kind = kind_of(variant)
        if kind.family == "branch":
            line = lines[branches(run, kind.percent).index(variant) % len(lines)]
        shade = theme.ink if variant is run.baseline else theme.cycle[color]
        chosen[variant.name] = Look(variant.title, shade, "-" if variant is run.baseline else line)
    return chosen


# --- what is missing ----------------------------------------------------------------------------


def _missing(run: Run) -> list[str]:
    notes = []
    seeds = [(v, seed) for v in run.variants for seed in v.finished]
    if seeds and bits(run).key != "test_bits":
        notes.append("The test files were not read: losses are those on the validation files.")
    elif untested := [
        f"{v.title} (seed {s.seed})" for v, s in seeds if math.isnan(bits(run).read(s))
    ]:
        notes.append(f"Without a test loss: {', '.join(untested)}.")
    read = {text(seed.result or {}, "data_sha256") for _, seed in seeds} - {""}
    if len(read) > 1:
        notes.append(
            f"The trainings read {len(read)} different sets of files (data_sha256), so their "
            "losses are no fair comparison."
        )
    for percent in percents(run):
        if branches(run, percent) and at(run, "narrow", percent) is None:
            notes.append(f"No narrow network of {percent} % to compare the branch with.")
    cut = [v.title for v in run.variants if kind_of(v).family == "branch" and v.finished]
    without = [
        v.title for v in run.variants
        if v.title in cut and not any(cut_of(seed) for seed in v.finished)
    ]  # fmt: skip
    if without:
        notes.append(f"No loss right after the cut was recorded for {', '.join(without)}.")
    return notes


def _compared_in(run: Run) -> list[Measure]:
    return [bits(run), sizes(run)[1], as_ratio(compute(run))]


def _compared(run: Run) -> list[tuple[Variant, Variant]]:
    """Every variant with the dense network and with the narrow one of its size."""
    pairs = pairs_with_baseline(run)
    for percent in percents(run):
        narrow = at(run, "narrow", percent)
        pairs += [
            (v, narrow) for v in run.variants
            if narrow is not None and v is not narrow and kind_of(v).percent == percent
        ]  # fmt: skip
    return pairs


PAGE: Final = Page(
    lead=(FIRST_FIGURE,),
    results=(
        ByVariant("results", "Results", results, seeds=True),
        ByVariant(
            "cuts", "What the cut lost", CUTS, only=was_cut, empty="Nothing was cut.",
            note="The first cut of each. All on the part of the validation files that is looked at "
            "while training, so the end differs a little from the results.",
        ),
        ByVariant("costs", "Sizes, time and memory", costs),
    ),
    closing={
        "test_bits": "bits",
        "validation_bits": "bits",
        "stored_percent_of_dense": "stored %",
        "compute_percent_of_dense": "compute %",
        "whole_compute_percent_of_dense": "with dense %",
    },
    claims=_claims,
    figures=_FIGURES,
    details=(
        Compared(_compared, _compared_in),
        BySeed(SEED_NUMBERS),
        Own(partial(ranks_table, brief=True)),
    ),
    missing=_missing,
    look=_look,
)  # fmt: skip
