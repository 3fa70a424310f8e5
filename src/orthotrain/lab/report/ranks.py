"""Ranks per layer: who has any, how they went, and the final ones."""

from __future__ import annotations

import math
from typing import Final

from orthotrain.lab.report.curves import Series, grid, layers_of
from orthotrain.lab.report.heatmaps import HeatMap, HeatMaps
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.rows import Row, number, text
from orthotrain.lab.report.stats import MISSING, Spread
from orthotrain.lab.report.tables import Cell, Table


def factored(variant: Variant) -> bool:
    """Whether any layer of any seed ever left its dense form."""
    return any(
        row.get("form", "dense") != "dense"
        for seed in variant.seeds
        for row in seed.of_kind("rank")
    )


def _final_ranks(variant: Variant) -> dict[str, tuple[Row, Spread]]:
    """For each layer its last record in one seed, and the spread of its final rank.

    Over finished seeds, where there are any.
    """
    last: dict[str, list[Row]] = {name: [] for name in layers_of(variant, "rank")}
    for seed in variant.finished or variant.seeds:
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


def _rank_maps(run: Run) -> list[HeatMap]:
    found = [
        (v, grid(v, Series("rank", relative_rank), columns=160))
        for v in run.variants
        if factored(v)
    ]
    return [HeatMap(v.title, g, 0.0, 1.0) for v, g in found if g is not None]


#: The rank of each layer over training.
RANK_MAPS: Final = HeatMaps(
    "ranks", "Rank per layer over training",
    "The color is the rank over the full rank, mean over the seeds that hold the layer in "
    "low-rank form; grey is dense. The final ranks are in the table 'Final ranks'.",
    _rank_maps, missing="No variant has a layer in low-rank form.",
)  # fmt: skip


def ranks_table(run: Run, *, brief: bool = False) -> Table:
    """One row per layer: full rank, and for each low-rank variant the final rank over seeds.

    Args:
        run: The run.
        brief: One column per variant in place of three, for a run of many variants.
    """
    variants = [v for v in run.variants if factored(v)]
    by_variant = [_final_ranks(variant) for variant in variants]
    layers: dict[str, Row] = {}
    for ranks in by_variant:
        for name, (row, _) in ranks.items():
            layers.setdefault(name, row)
    cells_of = _brief_cell if brief else _rank_cells
    rows = []
    for name, row in layers.items():
        shape, full = row.get("shape"), number(row, "full_rank")
        shown = " x ".join(map(str, shape)) if isinstance(shape, list) else MISSING
        cells = [Cell(name), Cell(shown), Cell(MISSING if math.isnan(full) else f"{full:.0f}")]
        rows.append((*cells, *(c for r in by_variant for c in cells_of(r.get(name), full))))
    head, keys = ["Layer", "Shape", "Full rank"], ["layer", "shape", "full_rank"]
    for variant in variants:
        head += [variant.title] if brief else [f"{variant.title}: rank", "% of full", "form"]
        columns = ("rank_percent",) if brief else ("rank", "rank_percent", "form")
        keys += [f"{variant.name}_{key}" for key in columns]
    empty = "No variant has a layer in low-rank form, so there are no ranks."
    note = "Percent of the full rank, the rank itself in small." if brief else ""
    return Table(
        "ranks", "Final ranks", tuple(head), tuple(keys), tuple(rows), empty=empty, note=note
    )


def _rank_cells(found: tuple[Row, Spread] | None, full: float) -> list[Cell]:
    if found is None:
        return [Cell(MISSING, Spread.of(())), Cell(MISSING, Spread.of(())), Cell(MISSING)]
    row, rank = found
    percent = _percent(rank, full)
    form = Cell(text(row, "form", MISSING))
    return [Cell(rank.show(1), rank), Cell(percent.show(0), percent), form]


def _brief_cell(found: tuple[Row, Spread] | None, full: float) -> list[Cell]:
    if found is None:
        return [Cell(MISSING, Spread.of(()))]
    row, rank = found
    if row.get("form") == "dense":
        return [Cell("dense", Spread.of(()))]
    percent = _percent(rank, full)
    return [Cell(percent.show(0), percent, aside=rank.show(1))]


def _percent(rank: Spread, full: float) -> Spread:
    return Spread.of(100.0 * value / full for value in rank.values)
