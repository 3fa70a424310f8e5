"""The page that tells settling from the schedule: mean stability, beside a random walk."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.lowrank.published import PUBLISHED_CURVES, PUBLISHED_LAG_EPOCHS
from orthotrain.lab.experiments.settling.config import CONSTANT, FALLING, walk_of
from orthotrain.lab.report.claims import Claim
from orthotrain.lab.report.figures import Curves, Panel
from orthotrain.lab.report.load import Run, SeedRun
from orthotrain.lab.report.measures import accuracy, mean
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.rows import field, number
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.style import Look, Theme, looks
from orthotrain.lab.report.tables import BySeed, ByVariant


def looks_of(seed: SeedRun) -> list[float]:
    """Mean stability over layers at each look, in their order."""
    found: dict[float, list[float]] = defaultdict(list)
    for row in seed.of_kind("stability"):
        if math.isfinite(value := number(row, "stability")):
            found[number(row, "step")].append(value)
    return [mean(found[step]) for step in sorted(found)]


def _lowest(seed: SeedRun) -> float:
    return min(looks_of(seed), default=math.nan)


def _end(seed: SeedRun) -> float:
    return looks_of(seed)[-1] if looks_of(seed) else math.nan


_LOWEST: Final = Measure("lowest_stability", "Lowest stability", _lowest, digits=4)
_END: Final = Measure("end_stability", "Stability at the end", _end, digits=4, better="more")
_RISE: Final = Measure(
    "rise", "Rise of the stability", lambda seed: _end(seed) - _lowest(seed), digits=4,
    better="more",
)  # fmt: skip
_ACCURACY: Final = accuracy("test")

_CLAIMS: Final = (
    Claim(
        "Is the basis more stable at the end where the learning rate falls?",
        ((FALLING, CONSTANT),), (_END,),
        note="The same network, data and initial weights. Only the schedule differs.",
    ),
    Claim(
        "Does the basis become more stable than in a random walk of the same step sizes?",
        ((FALLING, walk_of(FALLING)), (CONSTANT, walk_of(CONSTANT))), (_RISE, _END),
        note="A walk starts at the same weights. Per step each parameter moves as far as in "
        "training, in a random direction. What a walk shows follows from step sizes alone.",
    ),
)  # fmt: skip

_FIGURE: Final = Curves(
    "settling",
    "Mean stability of the bases, beside random walks of the same step sizes",
    "1 means the same orthogonal basis as at the look before, five epochs earlier at the scale "
    "cpu. A curve that rises although its rate is constant, and that its walk does not follow, "
    "is told from the schedule. The published curves, on axes of their own, compare with "
    f"{PUBLISHED_LAG_EPOCHS} epochs earlier, over 100 epochs of dense training on ImageNet with a "
    "falling rate: other networks, other data.",
    (
        Panel("Basis stability, mean over layers", "stability", field("stability"),
              x="epoch", fraction=True, bins=None, reduce="mean"),
        # On axes of its own: it moves ten times as far.
        Panel("Published, of other networks", "", field(""), lambda run: (),
              fraction=True, beside=PUBLISHED_CURVES),
    ),
    missing="No variant recorded the stability of its bases.",
)  # fmt: skip

_TRAINING: Final = Curves(
    "curves",
    "Training loss and learning rate",
    "A walk learns nothing: its loss is that of weights which drift.",
    (
        Panel("Training loss", "step", field("loss"), log=True),
        Panel("Learning rate", "step", field("lr"), zero=True),
    ),
)


def _look(run: Run, theme: Theme) -> dict[str, Look]:
    """A walk in the color of its training, broken."""
    chosen = looks(run, theme)
    for training in (FALLING, CONSTANT):
        if {training, walk_of(training)} <= chosen.keys():
            walk = chosen[walk_of(training)]
            chosen[walk_of(training)] = replace(walk, color=chosen[training].color, line="--")
    return chosen


_MEASURES: Final = (_LOWEST, _END, _RISE, _ACCURACY)
PAGE: Final = Page(
    lead=(_FIGURE,),
    results=(ByVariant("results", "Results", _MEASURES, seeds=True),),
    closing={
        "lowest_stability": "lowest stability",
        "end_stability": "at the end",
        "test_accuracy_percent": "test %",
    },
    claims=_CLAIMS,
    figures=(_TRAINING,),
    details=(BySeed(_MEASURES),),
    look=_look,
)
