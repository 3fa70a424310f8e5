"""Numbers over seeds, and the tables made of them: one source for the page and the CSV files."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.rows import Row, number, text

MISSING: Final = "\N{EN DASH}"
MIB: Final = 2.0**20


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds.

    Attributes:
        mean: NaN where there is no value.
        std: NaN for fewer than two values.
        values: The finite values, in seed order.
    """

    mean: float
    std: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize the finite ones of ``values``."""
        kept = tuple(value for value in values if math.isfinite(value))
        return cls(
            statistics.fmean(kept) if kept else math.nan,
            statistics.stdev(kept) if len(kept) > 1 else math.nan,
            kept,
        )

    def __bool__(self) -> bool:
        return bool(self.values)

    def show(self, digits: int) -> str:
        """``mean ± std``, the mean alone for one value, a dash for none."""
        if not self:
            return MISSING
        shown = f"{self.mean:,.{digits}f}"
        return shown if math.isnan(self.std) else f"{shown} ± {self.std:,.{digits}f}"


def over_seeds(variant: Variant, key: str, *, scale: float = 1.0) -> Spread:
    """The result ``key`` times ``scale`` over the finished seeds of a variant."""
    return Spread.of(seed.final(key) * scale for seed in variant.finished)


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what stands behind it in the CSV file.

    Attributes:
        shown: Text of the page.
        spread: The numbers, for a column that is a mean over seeds.
        exact: Text of the CSV file where it is not ``shown``.
    """

    shown: str
    spread: Spread | None = None
    exact: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        name: Stem of its CSV file.
        head: Column titles as the page shows them, units included.
        keys: Column names of the CSV file; a column of spreads becomes ``key`` and ``key_std``.
        rows: As many cells in each as there are columns.
    """

    name: str
    head: tuple[str, ...]
    keys: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def csv(self) -> str:
        """The table as CSV with full precision; an empty field is a missing number."""
        numeric = [
            any(row[i].spread is not None for row in self.rows) for i in range(len(self.keys))
        ]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            name
            for key, split in zip(self.keys, numeric, strict=True)
            for name in ((key, f"{key}_std") if split else (key,))
        )
        for row in self.rows:
            fields: list[str] = []
            for cell, split in zip(row, numeric, strict=True):
                fields += _number_fields(cell) if split else [_plain_field(cell)]
            writer.writerow(fields)
        return out.getvalue()


def _number_fields(cell: Cell) -> list[str]:
    spread = cell.spread or Spread.of(())
    return ["" if math.isnan(x) else repr(x) for x in (spread.mean, spread.std)]


def _plain_field(cell: Cell) -> str:
    if cell.exact is not None:
        return cell.exact
    return "" if cell.shown == MISSING else cell.shown


@dataclass(frozen=True)
class _Column:
    head: str
    key: str
    digits: int
    scale: float = 1.0


_ACCURACIES: Final = (
    _Column("Test accuracy (%)", "test_accuracy", 2, 100.0),
    _Column("Validation accuracy (%)", "validation_accuracy", 2, 100.0),
)
_SIZES: Final = (
    ("Trainable (% of dense)", "trainable"),
    ("Stored (% of dense)", "stored"),
    ("Stored, folded (% of dense)", "stored_folded"),
)
_COSTS: Final = (
    _Column("Step, dense phase (ms)", "step_ms_dense_phase", 2),
    _Column("Step, at the end (ms)", "step_ms_final", 2),
    _Column("Whole training (s)", "seconds", 1),
    _Column("Training memory at the end (MiB)", "training_bytes", 2, 1 / MIB),
    _Column("Switch (step)", "switch_step", 0),
)


def results_table(run: Run) -> Table:
    """One row a variant: accuracies and sizes, mean and spread over its finished seeds."""
    rows = []
    for variant in run.variants:
        count = f"{len(variant.finished)} of {variant.planned}"
        cells = [Cell(variant.title), *(_spread_cell(variant, column) for column in _ACCURACIES)]
        cells += [_size_cell(variant, key, run.dense_size) for _, key in _SIZES]
        rows.append((*cells, Cell(count)))
    head = ["Variant", *(column.head for column in _ACCURACIES), *(head for head, _ in _SIZES)]
    keys = ["variant", *(f"{column.key}_percent" for column in _ACCURACIES)]
    keys += [f"{key}_percent_of_dense" for _, key in _SIZES]
    return Table("results", (*head, "Seeds"), (*keys, "seeds"), tuple(rows))


def costs_table(run: Run) -> Table:
    """One row a variant: time and memory, mean and spread over its finished seeds."""
    rows = tuple(
        (Cell(variant.title), *(_spread_cell(variant, column) for column in _COSTS))
        for variant in run.variants
    )
    head = ("Variant", *(column.head for column in _COSTS))
    keys = ("variant", "step_ms_dense_phase", "step_ms_final", "seconds", "training_mib")
    return Table("costs", head, (*keys, "switch_step"), rows)


def _spread_cell(variant: Variant, column: _Column) -> Cell:
    spread = over_seeds(variant, column.key, scale=column.scale)
    return Cell(spread.show(column.digits), spread)


def _size_cell(variant: Variant, key: str, dense: float) -> Cell:
    count = over_seeds(variant, key)
    percent = over_seeds(variant, key, scale=100.0 / dense)
    if not percent:
        return Cell(MISSING, percent)
    return Cell(f"{percent.show(1)} ({short_count(count.mean)})", percent)


def short_count(value: float) -> str:
    """A count in three digits: ``842``, ``73.1 k``, ``1.24 M``."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


_SEED_COLUMNS: Final = (
    *("validation_accuracy", "test_accuracy", "validation_loss", "test_loss"),
    *("trainable", "stored", "stored_folded", "dense"),
    *("step_ms_dense_phase", "step_ms_final", "weight_bytes", "gradient_bytes", "state_bytes"),
    *("training_bytes", "peak_rss_bytes", "switch_step", "steps", "seconds"),
)


def seeds_table(run: Run) -> Table:
    """One row a seed: its result as recorded, accuracies as fractions and sizes in bytes."""
    rows = tuple(
        (
            Cell(variant.title),
            Cell(str(seed.seed)),
            *(raw_cell(seed.final(key)) for key in _SEED_COLUMNS),
        )
        for variant in run.variants
        for seed in variant.seeds
    )
    head = ("Variant", "Seed", *(key.replace("_", " ") for key in _SEED_COLUMNS))
    return Table("seeds", head, ("variant", "seed", *_SEED_COLUMNS), rows)


def raw_cell(value: float) -> Cell:
    """A recorded number: five digits on the page, all of them in the CSV file."""
    if math.isnan(value):
        return Cell(MISSING)
    exact = f"{value:.0f}" if value.is_integer() else repr(value)
    return Cell(exact if value.is_integer() else f"{value:.5g}", exact=exact)


def layer_order(variant: Variant) -> list[str]:
    """The layers with a recorded rank, in the order the model names them."""
    names: dict[str, None] = {}
    for seed in variant.seeds:
        names.update((text(row, "layer"), None) for row in seed.rows["rank"])
    return list(names)


def final_ranks(variant: Variant) -> dict[str, tuple[Row, Spread]]:
    """For each layer its last record in one finished seed, and the spread of its final rank."""
    last: dict[str, list[Row]] = {name: [] for name in layer_order(variant)}
    for seed in variant.finished:
        by_layer = {text(row, "layer"): row for row in seed.rows["rank"]}
        for name, row in by_layer.items():
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


def ranks_table(run: Run) -> Table:
    """One row a layer: full rank, and for each low-rank variant the final rank over seeds."""
    by_variant = [final_ranks(variant) for variant in run.low_rank]
    layers: dict[str, Row] = {}
    for ranks in by_variant:
        for name, (row, _) in ranks.items():
            layers.setdefault(name, row)
    rows = []
    for name, row in layers.items():
        shape = row.get("shape")
        shown = " x ".join(map(str, shape)) if isinstance(shape, list) else MISSING
        full = number(row, "full_rank")
        cells = [Cell(name), Cell(shown), Cell(MISSING if math.isnan(full) else f"{full:.0f}")]
        for ranks in by_variant:
            cells += _rank_cells(ranks.get(name), full)
        rows.append(tuple(cells))
    head = ["Layer", "Shape", "Full rank"]
    keys = ["layer", "shape", "full_rank"]
    for variant in run.low_rank:
        head += [f"{variant.title}: rank", "% of full", "form"]
        keys += [f"{variant.name}_rank", f"{variant.name}_rank_percent", f"{variant.name}_form"]
    return Table("ranks", tuple(head), tuple(keys), tuple(rows))


def _rank_cells(found: tuple[Row, Spread] | None, full: float) -> list[Cell]:
    if found is None:
        return [Cell(MISSING, Spread.of(())), Cell(MISSING, Spread.of(())), Cell(MISSING)]
    row, rank = found
    percent = Spread.of(100.0 * value / full for value in rank.values)
    return [
        Cell(rank.show(1), rank),
        Cell(percent.show(0), percent),
        Cell(text(row, "form", MISSING)),
    ]


def settings_table(run: Run) -> Table:
    """One row a setting, one column a variant; a setting that differs between seeds says so."""
    by_variant = [_settings(variant) for variant in run.variants]
    names = dict.fromkeys(name for settings in by_variant for name in settings)
    rows = tuple(
        (Cell(name), *(Cell(settings.get(name, MISSING)) for settings in by_variant))
        for name in names
    )
    titles = tuple(variant.title for variant in run.variants)
    keys = tuple(variant.name for variant in run.variants)
    return Table("settings", ("Setting", *titles), ("setting", *keys), rows)


def _settings(variant: Variant) -> dict[str, str]:
    seen: dict[str, dict[str, None]] = {}
    for seed in variant.finished:
        settings = seed.result.get("settings") if seed.result is not None else None
        for name, value in flatten(settings if isinstance(settings, dict) else {}):
            seen.setdefault(name, {})[value] = None
    return {name: " | ".join(values) for name, values in seen.items()}


def flatten(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested objects as dotted names with their values as text."""
    flat: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat += flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return flat


def environment_table(run: Run) -> Table:
    """Everything ``run.json`` says about where and how the run was made."""
    described = {key: value for key, value in run.info.items() if key not in ("variants", "schema")}
    rows = tuple((Cell(name), Cell(value)) for name, value in flatten(described))
    return Table("environment", ("What", "Value"), ("what", "value"), rows)


def all_tables(run: Run) -> tuple[Table, ...]:
    """Every table of a run; one without rows is left to the page to explain."""
    return (
        results_table(run),
        costs_table(run),
        seeds_table(run),
        ranks_table(run),
        settings_table(run),
        environment_table(run),
    )
