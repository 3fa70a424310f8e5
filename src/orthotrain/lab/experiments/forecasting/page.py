"""The page of forecasters: errors against the share of numbers that is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from orthotrain.lab.experiments.branches.columns import compute
from orthotrain.lab.experiments.branches.goal import Goal
from orthotrain.lab.experiments.branches.kinds import finished
from orthotrain.lab.experiments.forecasting.published import PUBLISHED
from orthotrain.lab.experiments.forecasting.variants import HALF, REGULARISED, STRENGTHS
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.claims import Claim, each
from orthotrain.lab.report.default import pairs_with_baseline
from orthotrain.lab.report.figures import Curves, Panel, Reference
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.measures import (
    SECONDS,
    TRAINING_MEMORY,
    raw,
    result,
    step_time,
)
from orthotrain.lab.report.page import Card, Page
from orthotrain.lab.report.ranks import ranks_table
from orthotrain.lab.report.rows import field
from orthotrain.lab.report.scatter import Group, Over, Scatter
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.tables import BySeed, ByVariant, Cell, Compared, Own, Table

_UNIT: Final = "deviations²"


def _error(part: str, *, kind: str, unit: str = "") -> Measure:
    title = f"{part.capitalize()} error ({kind.upper()})"
    return result(f"{part}_{kind}", title, unit=unit, digits=4, better="less")


_MSE: Final = Goal(
    "mse", partial(_error, kind="mse", unit=_UNIT), word="MSE", digits=4, name="error"
)
_MAE: Final = Goal("mae", partial(_error, kind="mae"), word="MAE", digits=4, name="error")


def _ahead(run: Run) -> str:
    """How far the run forecasts, in words; nothing before its first training has ended."""
    ahead = result("ahead", "")
    steps = max((ahead.mean(v) for v in run.variants if v.finished), default=math.nan)
    return f", {steps:.0f} steps ahead" if math.isfinite(steps) else ""


def _mse(run: Run) -> Measure:
    measure = _MSE.measure(run)
    return replace(measure, title=f"{measure.title}{_ahead(run)}")


def _results(run: Run) -> list[Measure]:
    trained, stored, _ = sizes(run)
    return [_mse(run), _MAE.measure(run), trained, stored, compute(run)]


def _costs(run: Run) -> list[Measure]:
    return [
        result("best_step", "Step of the best model", digits=0),
        result("best_of_looks", "Best of so many looks", digits=0),
        result("last_validation_mse", "Validation error of the last model (MSE)", digits=4),
        step_time("step_ms_dense_phase", "Time per step before the cut"),
        step_time("step_ms_final", "Time per step at the end"),
        SECONDS,
        TRAINING_MEMORY,
    ]


# --- claims -------------------------------------------------------------------------------------


def _named(run: Run, *names: str) -> list[Variant]:
    return [v for name in names for v in run.variants if v.name == name]


def _published_ones(run: Run) -> list[Variant]:
    return _named(run, *(f"oialr-{i}" for i in range(1, len(STRENGTHS) + 1)))


def _claims(run: Run) -> list[Claim]:
    base, ours, decides, length = run.baseline, _published_ones(run), (_mse(run),), _ahead(run)
    regularised = next(iter(_named(run, REGULARISED)), None)
    narrow = next(iter(_named(run, f"narrow-{HALF}")), None)
    cut = _named(run, f"half-{HALF}")
    asked = [
        ("Has OIALR a lower error than the dense forecaster", ours, base),
        ("Has OIALR a lower error than the regularised dense forecaster", ours, regularised),
        ("Has the regularised dense forecaster a lower error than the plain one",
         _named(run, REGULARISED), base),
        ("Have trained factors a lower error than a narrow forecaster of their size", cut, narrow),
        ("Have trained factors a lower error than the dense forecaster", cut, base),
    ]  # fmt: skip
    return [
        Claim(f"{question}{length}?", each(mine, other), decides)
        for question, mine, other in asked
        if mine and other is not None
    ]


# --- figures ------------------------------------------------------------------------------------


def _groups(run: Run) -> list[Group]:
    oialr, base = _published_ones(run), run.baseline
    return [
        Group("dense", None, "D", finished([base])),
        Group("dense, regularised", None, "s", _named(run, REGULARISED), hollow=True),
        Group("OIALR, published rule", 4, "*", oialr, paths=[oialr]),
        Group("trained factors", 2, "^", _named(run, f"half-{HALF}")),
        Group("narrow", 1, "s", _named(run, f"narrow-{HALF}")),
    ]


def _published_panels(run: Run) -> list[Panel]:
    def lines(i: int) -> tuple[Reference, ...]:
        known = PUBLISHED[i]
        x = np.array(known.trainable)
        return (
            Reference("OIALR", x, np.array(known.oialr), like="oialr-1"),
            Reference("dense, beside it", x, np.array(known.dense), like="dense"),
        )

    return [
        Panel(
            f"ETTm2, {known.ahead} steps ahead (MSE over trained %)", "", field(""),
            lambda run: (), "trained, % of dense", beside=lines(i),
        )
        for i, known in enumerate(PUBLISHED)
    ]  # fmt: skip


_LEAD: Final = Scatter(
    "errors", "Error against trained and stored size",
    "Further down and further left is better. Errors are those of the model with the lowest "
    "validation error of its training, in squared deviations of the training part.",
    _mse,
    lambda run: [Over(one) for one in (*sizes(run)[:2], compute(run))],
    _groups,
    missing="No finished seed has an error and a size.",
)  # fmt: skip

_FIGURES: Final = (
    Curves(
        "curves", "Learning curves", "Error on the validation windows that are looked at.",
        (Panel("Validation error (MSE)", "eval", field("mse"), bins=None, late="top"),),
        columns=1,
    ),
    Curves(
        "published", "Published errors",
        "Read out of the data of the authors' figure; split and number of runs are not stated.",
        _published_panels,
    ),
)  # fmt: skip


def _published_table(run: Run) -> Table:
    rows = [
        (
            Cell(str(known.ahead)),
            *(Cell(f"{n:g}", exact=repr(n)) for n in (known.trainable[i], known.oialr[i])),
            Cell(f"{known.dense[i]:g}", exact=repr(known.dense[i])),
        )
        for known in PUBLISHED
        for i in range(len(known.trainable))
    ]
    return Table(
        "published", "Published errors",
        ("Steps ahead", "Trained, % of dense", "OIALR, MSE", "Dense beside it, MSE"),
        ("ahead", "trainable_percent", "oialr_mse", "dense_mse"),
        tuple(rows),
    )  # fmt: skip


def _cards(run: Run) -> Sequence[Card]:
    note = (
        "Of ETTm2, by the authors. This run has another schedule, and another size where its scale "
        "is not full."
    )
    return [Card("Published numbers", (Own(_published_table),), note)]


_SEED_NUMBERS: Final = raw(
    *("test_mse", "test_mae", "validation_mse", "validation_mae", "last_validation_mse"),
    *("best_step", "best_of_looks", "stored", "dense", "trainable", "compute", "switch_step"),
    *("steps", "seconds"),
)

PAGE: Final = Page(
    lead=(_LEAD,),
    results=(
        ByVariant("results", "Results", _results, seeds=True),
        ByVariant("costs", "Time and memory", _costs),
    ),
    closing={
        "test_mse": "MSE",
        "test_mae": "MAE",
        "validation_mse": "validation MSE",
        "trainable_percent_of_dense": "trained %",
        "stored_percent_of_dense": "stored %",
    },
    claims=_claims,
    figures=_FIGURES,
    cards=_cards,
    details=(Compared(pairs_with_baseline, _results), BySeed(_SEED_NUMBERS), Own(ranks_table)),
)
