"""What the page of low-rank experiments measures, and which of its variants is which."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from orthotrain.lab.report.curves import layers_of
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.measures import (
    SECONDS,
    TRAINING_MEMORY,
    accuracy,
    raw,
    result,
    step_time,
)
from orthotrain.lab.report.rows import Row, number, text
from orthotrain.lab.report.stats import MISSING, Measure, Spread
from orthotrain.lab.report.tables import Cell, Table

# A narrower dense network whose name begins so stores as much as a low-rank one.
_RIVAL: Final = "narrow"


# --- which variant is which ---------------------------------------------------------------------


def factored(variant: Variant) -> bool:
    """Whether any layer of any seed ever left its dense form."""
    return any(
        row.get("form", "dense") != "dense"
        for seed in variant.seeds
        for row in seed.of_kind("rank")
    )


def rival(run: Run) -> Variant | None:
    """The narrower dense network of the same stored size."""
    return next((v for v in run.variants if v.name.startswith(_RIVAL)), None)


def dense_size(run: Run) -> float:
    """Stored numbers of the dense network, 100 % everywhere on the page; NaN where unknown.

    The baseline's own count where it finished. Otherwise the largest count that any variant
    recorded for the dense form of its network: a narrow network's is smaller.
    """
    finished = run.baseline.finished if run.baseline is not None else ()
    known = [seed.final("stored") for seed in finished] or [
        count
        for variant in run.variants
        for seed in variant.seeds
        for count in (seed.final("dense"), *(number(r, "dense") for r in seed.of_kind("size")))
    ]
    return max((value for value in known if math.isfinite(value)), default=math.nan)


# --- columns ------------------------------------------------------------------------------------

ACCURACY: Final = accuracy("test")
STEP: Final = step_time("step_ms_final", "Time per step at the end")
COSTS: Final = (
    step_time("step_ms_dense_phase", "Time per step before the switch"),
    STEP,
    SECONDS,
    TRAINING_MEMORY,
    result("switch_step", "Step of the switch", digits=0),
)


def sizes(run: Run) -> list[Measure]:
    """Trained, stored and folded numbers, in percent of the dense network."""
    return [
        _size(run, "trainable", "Trained"),
        _size(run, "stored", "Stored"),
        _size(run, "stored_folded", "Stored, folded"),
    ]


def _size(run: Run, key: str, title: str) -> Measure:
    count = result(key, title, scale=100.0 / dense_size(run), unit="% of dense", digits=1)
    return replace(
        count.named(f"{key}_percent_of_dense"),
        better="less",
        aside=lambda variant: _count(result(key, title).mean(variant)),
    )


def _count(value: float) -> str:
    """A count in three digits: ``842``, ``73.1 k``, ``1.24 M``."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def results(run: Run) -> list[Measure]:
    """Accuracies and sizes."""
    return [ACCURACY, accuracy("validation"), *sizes(run)]


SEED_NUMBERS: Final = raw(
    *("validation_accuracy", "test_accuracy", "validation_loss", "test_loss"),
    *("trainable", "stored", "stored_folded", "dense"),
    *("step_ms_dense_phase", "step_ms_final", "weight_bytes", "gradient_bytes", "state_bytes"),
    *("training_bytes", "peak_rss_bytes", "switch_step", "steps", "seconds"),
)


# --- ranks --------------------------------------------------------------------------------------


def _final_ranks(variant: Variant) -> dict[str, tuple[Row, Spread]]:
    """For each layer its last record in one finished seed, and the spread of its final rank."""
    last: dict[str, list[Row]] = {name: [] for name in layers_of(variant, "rank")}
    for seed in variant.finished:
        for name, row in {text(row, "layer"): row for row in seed.of_kind("rank")}.items():
            last[name].append(row)
    return {
        name: (rows[-1], Spread.of(_rank(row) for row in rows))
        for name, rows in last.items()
        if rows
    }


def _rank(row: Row) -> float:
    """The rank, which for a dense layer may be null and then is full."""
    rank = number(row, "rank")
    return number(row, "full_rank") if math.isnan(rank) else rank


def relative_rank(row: Row) -> float:
    """Rank over full rank; NaN while the layer is dense."""
    dense = row.get("form") == "dense"
    return math.nan if dense else number(row, "rank") / number(row, "full_rank")


def ranks_table(run: Run) -> Table:
    """One row per layer: full rank, and for each low-rank variant the final rank over seeds."""
    variants = [v for v in run.variants if factored(v)]
    by_variant = [_final_ranks(variant) for variant in variants]
    layers: dict[str, Row] = {}
    for ranks in by_variant:
        for name, (row, _) in ranks.items():
            layers.setdefault(name, row)
    rows = []
    for name, row in layers.items():
        shape, full = row.get("shape"), number(row, "full_rank")
        shown = " x ".join(map(str, shape)) if isinstance(shape, list) else MISSING
        cells = [Cell(name), Cell(shown), Cell(MISSING if math.isnan(full) else f"{full:.0f}")]
        rows.append((*cells, *(c for r in by_variant for c in _rank_cells(r.get(name), full))))
    head, keys = ["Layer", "Shape", "Full rank"], ["layer", "shape", "full_rank"]
    for variant in variants:
        head += [f"{variant.title}: rank", "% of full", "form"]
        keys += [f"{variant.name}_{key}" for key in ("rank", "rank_percent", "form")]
    empty = "No variant has a layer in low-rank form, so there are no ranks."
    return Table("ranks", "Final ranks", tuple(head), tuple(keys), tuple(rows), empty=empty)


def _rank_cells(found: tuple[Row, Spread] | None, full: float) -> list[Cell]:
    if found is None:
        return [Cell(MISSING, Spread.of(())), Cell(MISSING, Spread.of(())), Cell(MISSING)]
    row, rank = found
    percent = Spread.of(100.0 * value / full for value in rank.values)
    form = Cell(text(row, "form", MISSING))
    return [Cell(rank.show(1), rank), Cell(percent.show(0), percent), form]
