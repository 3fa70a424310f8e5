"""The page of language models: loss against size and compute, every size from one dense run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from orthotrain.lab.experiments.branches.claims import claims, compared
from orthotrain.lab.experiments.branches.columns import (
    as_ratio,
    compute,
    cut_of,
    cuts,
    results,
    was_cut,
)
from orthotrain.lab.experiments.branches.first_figure import beyond, family_looks, first_figure
from orthotrain.lab.experiments.branches.kinds import at, branches, kind_of, percents
from orthotrain.lab.experiments.language.columns import BITS, SEED_NUMBERS, costs
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.claims import Claim, each
from orthotrain.lab.report.figures import Curves, Panel
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.measures import result
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.ranks import ranks_table
from orthotrain.lab.report.rows import field, text
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.tables import BySeed, ByVariant, Compared, Own

# --- claims -------------------------------------------------------------------------------------


def _claims(run: Run) -> list[Claim]:
    found, base = claims(run, BITS), run.baseline
    if base is not None and (pairs := each(run.variants, base)):
        question = f"Which variants have a lower loss than {base.title}?"
        found.append(Claim(question, pairs, (BITS.measure(run),)))
    return found


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
            most=beyond(run, BITS, 1.5),
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


# --- what is missing ----------------------------------------------------------------------------


def _missing(run: Run) -> list[str]:
    notes = []
    seeds = [(v, seed) for v in run.variants for seed in v.finished]
    if seeds and BITS.measure(run).key != "test_bits":
        notes.append("The test files were not read: losses are those on the validation files.")
    elif untested := [
        f"{v.title} (seed {s.seed})" for v, s in seeds if math.isnan(BITS.measure(run).read(s))
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
        if v.title in cut and not any(cut_of(seed, BITS) for seed in v.finished)
    ]  # fmt: skip
    if without:
        notes.append(f"No loss right after the cut was recorded for {', '.join(without)}.")
    return notes


def _compared_in(run: Run) -> list[Measure]:
    return [BITS.measure(run), sizes(run)[1], as_ratio(compute(run))]


PAGE: Final = Page(
    lead=(
        first_figure(
            BITS,
            cut="The cut alone lies above the end of its branch by what training on gained since, "
            "on the part of the validation files that is looked at while training.",
        ),
    ),
    results=(
        ByVariant("results", "Results", partial(results, goal=BITS), seeds=True),
        ByVariant(
            "cuts", "What the cut lost", cuts(BITS), only=partial(was_cut, goal=BITS),
            empty="Nothing was cut.",
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
        Compared(compared, _compared_in),
        BySeed(SEED_NUMBERS),
        Own(partial(ranks_table, brief=True)),
    ),
    missing=_missing,
    look=family_looks,
)  # fmt: skip
