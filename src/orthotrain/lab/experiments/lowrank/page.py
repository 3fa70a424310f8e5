"""The page of low-rank experiments: accuracy against size, ranks, the stability of bases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from orthotrain.lab.experiments.branches.claims import claims as branch_claims
from orthotrain.lab.experiments.branches.claims import compared
from orthotrain.lab.experiments.branches.columns import cuts, was_cut
from orthotrain.lab.experiments.branches.first_figure import family_looks, first_figure
from orthotrain.lab.experiments.branches.kinds import kind_of
from orthotrain.lab.experiments.lowrank.columns import (
    ACCURACY,
    COSTS,
    GOAL,
    SEED_NUMBERS,
    STEP,
    results,
    rival,
    tuned,
)
from orthotrain.lab.experiments.lowrank.published import (
    PUBLISHED_CURVES,
    PUBLISHED_LAG_EPOCHS,
)
from orthotrain.lab.experiments.sizes import dense_size, sizes
from orthotrain.lab.report.claims import Claim, each
from orthotrain.lab.report.curves import Series, grid
from orthotrain.lab.report.figures import Curves, Panel, Values
from orthotrain.lab.report.heatmaps import HeatMap, HeatMaps
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.measures import MIB, TRAINING_MEMORY, result
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.ranks import RANK_MAPS, factored, ranks_table
from orthotrain.lab.report.rows import Row, field, number
from orthotrain.lab.report.style import Look, Theme, looks
from orthotrain.lab.report.tables import BySeed, ByVariant, Compared, Own

_BINS: Final = 80


def _compared(run: Run) -> list[tuple[Variant, Variant]]:
    """Those of one size with each other; low-rank ones of no size with the narrow network too."""
    narrow = rival(run)
    return [*compared(run), *((v, narrow) for v in tuned(run) if narrow is not None)]


# --- claims -------------------------------------------------------------------------------------


def _claims(run: Run) -> list[Claim]:
    base, narrow = run.baseline, rival(run)
    low = tuned(run)
    stored = sizes(run)[1]
    claims = []
    if base is not None:
        pairs = each(run.variants, base)
        claims = [
            Claim(f"Which variants are more accurate than {base.title}?", pairs, (ACCURACY,)),
            Claim(f"Which store less than {base.title}?", pairs, (stored,)),
            Claim(f"Which take less time per step than {base.title}?", pairs, (STEP,)),
            Claim(f"Which need less memory to train than {base.title}?", pairs, (TRAINING_MEMORY,)),
        ]
    if narrow is not None and low:
        claims.append(
            Claim(
                f"Which low-rank networks are more accurate than {narrow.title}?",
                each(low, narrow), (ACCURACY,),
                beside=(stored, STEP),
                note="The narrow network is trained from scratch and stores as much as one of the "
                "low-rank networks. At another stored size this is no comparison of methods.",
            )
        )  # fmt: skip
    return [*branch_claims(run, GOAL), *claims]


# --- stability of the bases ---------------------------------------------------------------------


def watched(run: Run) -> Sequence[Variant]:
    """Variants whose layers all stay dense and whose stability was recorded, the baseline first."""
    found = [
        v for v in run.variants if not factored(v) and any(s.of_kind("stability") for s in v.seeds)
    ]
    return sorted(found, key=lambda variant: variant is not run.baseline)


def _stability_maps(run: Run) -> list[HeatMap]:
    maps = []
    for variant in watched(run)[:1]:
        for key, title in (("stability", "Basis stability"), ("mixing", "Mixing similarity")):
            found = grid(variant, Series("stability", field(key), x="epoch"))
            if found is not None:
                low = math.floor(10 * float(np.nanquantile(found.values, 0.02))) / 10
                title = f"{title}, {variant.title}"
                maps.append(HeatMap(title, found, min(low, 0.9), 1.0, "epoch"))
    return maps


_STABILITY: Final = (
    Panel("Basis stability, mean over layers", "stability", field("stability"), watched,
          x="epoch", fraction=True, bins=None, reduce="mean", beside=PUBLISHED_CURVES),
)  # fmt: skip


# --- figures ------------------------------------------------------------------------------------


def _switch(variant: Variant) -> float:
    return result("switch_step", "").mean(variant)


_TRAINING: Final = (
    Panel("Training loss", "step", field("loss"), log=True, bins=_BINS, mark=_switch),
    Panel("Validation accuracy (%)", "eval", field("accuracy", split="validation", scale=100.0),
          bins=None, late="bottom", mark=_switch),
)  # fmt: skip


def _size_panels(run: Run) -> list[Panel]:
    scale = 100.0 / dense_size(run)
    return [
        Panel(f"{title} (% of dense)", "size", field(key, scale=scale), reduce="hold", zero=True)
        for title, key in (("Stored", "stored"), ("Trained", "trainable"))
    ]


def _memory(row: Row) -> float:
    """Weights, gradients and optimizer state in MiB."""
    parts = ("weight_bytes", "gradient_bytes", "state_bytes")
    return sum(number(row, key) for key in parts) / MIB


_COST_PANELS: Final = (
    Panel("Time per step (ms)", "step", field("step_ms"), bins=_BINS, zero=True, mark=_switch),
    Panel("Training memory (MiB)", "size", _memory, reduce="hold", zero=True),
)


def _scheduled(run: Run) -> list[Variant]:
    """The baseline, and the low-rank networks of no size of their own: OIALR."""
    base = [] if run.baseline is None else [run.baseline]
    return [*base, *tuned(run)]


_SCHEDULES: Final = (
    Panel("Learning rate", "step", field("lr"), _scheduled, log=True, bins=_BINS, mark=_switch),
)

_FIGURES: Final = (
    Values(
        "accuracy", "Accuracy against size",
        "Further up and further left is better. The vertical line is the dense network. Stored: "
        "every number the trained network keeps, frozen factors included. Folded: the core is "
        "multiplied into one factor for deployment. Trained: the numbers that were trained at "
        "the end, the measure of the paper, which leaves out frozen factors.",
        sizes, against=ACCURACY,
        missing="No finished seed has both a test accuracy and a size.",
    ),
    Curves(
        "curves", "Training curves",
        f"Each point of the loss is the median of one of {_BINS} equal stretches. Dotted lines: "
        "the mean step at which a variant left its dense phase. The accuracy axis starts at the "
        "level reached after a fifth of the evaluations.",
        _TRAINING, missing="No training loss and no validation accuracy was recorded.",
    ),
    Curves(
        "schedules", "Learning rates of the baseline and of OIALR",
        "Dotted lines: the mean step of the switch. Lines that coincide have one schedule.",
        _SCHEDULES, columns=1, missing="No learning rate was recorded.",
    ),
    Curves(
        "size", "Size while training",
        "With frozen bases only the core is trained after the switch, but its factors are stored "
        "beside it. So the stored size falls below the dense one only at ranks below about half.",
        _size_panels, missing="No size was recorded.",
    ),
    RANK_MAPS,
    HeatMaps(
        "stability", "Basis stability and mixing per layer",
        "1 means the same orthogonal basis (left), or the same mixing of its directions (right), "
        "as at the comparison before.",
        _stability_maps,
        missing="No variant that stays dense recorded the stability of its bases.",
    ),
    Curves(
        "stability-mean", "Basis stability beside the published curves",
        f"The published curves compare with {PUBLISHED_LAG_EPOCHS} epochs earlier, over 100 "
        "epochs. Data, scale and schedule differ, so compare the shape only. A falling learning "
        "rate alone also drives the stability to one: a rise is no proof that a basis settled.",
        _STABILITY, columns=1,
        missing="No variant that stays dense recorded the stability of its bases.",
    ),
    Curves(
        "cost", "Time and memory",
        "Time: forward, backward and optimizer step with all hooks, median of each stretch. The "
        "few steps that decompose weights hardly move a median; 'whole training' contains them. "
        "Memory: weights, gradients and optimizer state, without activations.",
        _COST_PANELS, missing="Neither the time per step nor memory was recorded.",
    ),
)  # fmt: skip


def _look(run: Run, theme: Theme) -> dict[str, Look]:
    """The narrow network broken: it often runs on the very line of the dense one."""
    if any(kind_of(variant).percent for variant in run.variants):
        return family_looks(run, theme)
    chosen, narrow = looks(run, theme), rival(run)
    if narrow is not None:
        chosen[narrow.name] = replace(chosen[narrow.name], line="--")
    return chosen


# --- what is missing ----------------------------------------------------------------------------


def _missing(run: Run) -> list[str]:
    notes = [
        f"{variant.title}: no test accuracy for seed {', '.join(untested)}."
        for variant in run.variants
        if (untested := [str(s.seed) for s in variant.finished if math.isnan(ACCURACY.read(s))])
    ]
    if rival(run) is None and any(map(factored, run.variants)):
        notes.append("There is no narrow dense network of the same stored size to compare with.")
    for variant in run.variants:
        jumps = [
            str(row.get("layer", "an unnamed layer"))
            for seed in variant.seeds
            for row in seed.of_kind("event")
            if row.get("event") == "loss_jump"
        ]
        if jumps:
            layers = ", ".join(sorted(set(jumps)))
            notes.append(
                f"{variant.title}: the loss jumped after {len(jumps)} of the cuts, so the next cut "
                f"waited, in {layers}."
            )
    return notes


PAGE: Final = Page(
    lead=(
        first_figure(
            GOAL,
            cut="The cut alone lies below the end of its branch by what training on gained since, "
            "on the validation images.",
        ),
    ),
    results=(
        ByVariant("results", "Results", results, seeds=True),
        ByVariant(
            "cuts",
            "What the cut lost",
            cuts(GOAL),
            only=partial(was_cut, goal=GOAL),
            empty="Nothing was cut and looked at right after.",
            note="The one cut of each, on the validation images.",
        ),
        ByVariant("costs", "Time and memory", COSTS),
    ),
    closing={
        "test_accuracy_percent": "test %",
        "stored_percent_of_dense": "stored %",
        "trainable_percent_of_dense": "trained %",
        "compute_percent_of_dense": "compute %",
        "step_ms_final": "ms per step at the end",
    },
    claims=_claims,
    figures=_FIGURES,
    details=(
        Compared(_compared, lambda run: [ACCURACY, sizes(run)[1], STEP, TRAINING_MEMORY]),
        BySeed(SEED_NUMBERS),
        Own(ranks_table),
    ),
    missing=_missing,
    look=_look,
)
