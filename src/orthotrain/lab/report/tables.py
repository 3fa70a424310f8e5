"""Tables of columns: one source for the page, the terminal and the CSV files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from orthotrain.lab.report.claims import WORDS
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.stats import (
    MIN_SEEDS,
    MISSING,
    Better,
    Measure,
    Paired,
    Spread,
    paired_by_seed,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what stands behind it in the CSV file.

    Attributes:
        shown: Text of the page.
        spread: The numbers, for a column that is a mean over seeds.
        exact: Text of the CSV file where it is not ``shown``.
        aside: What the page adds, smaller.
    """

    shown: str
    spread: Spread | None = None
    exact: str | None = None
    aside: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        name: Stem of its CSV file.
        title: Of its tab.
        head: Column titles as the page shows them, units included.
        keys: Column names of the CSV file; a column of spreads becomes ``key`` and ``key_std``.
        rows: As many cells in each as there are columns.
        better: The better direction of each column; may be shorter.
        empty: What is said where there are no rows.
        note: How to read it.
    """

    name: str
    title: str
    head: tuple[str, ...]
    keys: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    better: tuple[Better, ...] = ()
    empty: str = "Nothing was recorded."
    note: str = ""

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


class TableOf(Protocol):
    """A declared table: anything that makes a table of a run."""

    def table(self, run: Run) -> Table:
        """The table of this run; without rows where it has nothing for it."""


Measures = Sequence[Measure] | Callable[[Run], Sequence[Measure]]


@dataclass(frozen=True)
class Difference:
    """A column: a measure less that of another variant, seed by seed, with its interval.

    Attributes:
        measure: What is compared.
        other: What with.
        key: Name of its CSV column.
        title: Heading; the other variant's title is put behind it.
    """

    measure: Measure
    other: Callable[[Run], Variant | None]
    key: str = "difference"
    title: str = "Difference from"


@dataclass(frozen=True)
class ByVariant:
    """A table of one row per variant and one column per measure, means over finished seeds.

    Attributes:
        name: Stem of its CSV file.
        title: Of its tab.
        measures: Its columns, which may depend on the run.
        difference: A column behind the first measure, or none.
        seeds: Whether the last column counts the seeds.
        only: Which variants have a row.
        more: Rows below those of the variants.
        empty: What is said without rows.
        note: How to read it.
    """

    name: str
    title: str
    measures: Measures
    difference: Difference | None = None
    seeds: bool = False
    only: Callable[[Variant], bool] = lambda variant: True
    more: Callable[[Run], Iterable[tuple[Cell, ...]]] = lambda run: ()
    empty: str = "There is no variant, so there is nothing to show."
    note: str = ""

    def table(self, run: Run) -> Table:
        """The table of a run."""
        measures = given(self.measures, run)
        heads = [(m.heading, m.column, m.better) for m in measures]
        other = self.difference.other(run) if self.difference is not None else None
        if self.difference is not None:
            title = f"{self.difference.title} {other.title if other else 'the baseline'}"
            heads.insert(1, (f"{title} (95 % interval)", self.difference.key, ""))
        rows = []
        for variant in filter(self.only, run.variants):
            cells = [mean_cell(variant, measure) for measure in measures]
            if self.difference is not None:
                cells.insert(1, _difference(variant, other, self.difference.measure))
            if self.seeds:
                cells.append(Cell(f"{len(variant.finished)} of {variant.planned}"))
            rows.append((Cell(variant.title), *cells))
        last = [("Seeds", "seeds", "")] if self.seeds else []
        return Table(
            self.name,
            self.title,
            ("Variant", *(head for head, *_ in (*heads, *last))),
            ("variant", *(key for _, key, _ in (*heads, *last))),
            (*rows, *self.more(run)),
            ("", *(better for *_, better in heads)),
            self.empty,
            self.note,
        )


@dataclass(frozen=True)
class BySeed:
    """A table of one row per seed, numbers as recorded.

    Attributes:
        measures: Its columns, which may depend on the run.
    """

    measures: Measures

    def table(self, run: Run) -> Table:
        """The table of a run."""
        measures = given(self.measures, run)
        rows = tuple(
            (
                Cell(variant.title),
                Cell(str(seed.seed)),
                *(value_cell(measure.read(seed)) for measure in measures),
            )
            for variant in run.variants
            for seed in variant.seeds
        )
        keys = ("variant", "seed", *(measure.key for measure in measures))
        head = tuple(key.replace("_", " ") for key in keys)
        return Table("seeds", "Every seed", head, keys, rows, empty="No seed was started.")


@dataclass(frozen=True)
class Compared:
    """A table of one row per pair and measure: both values, the difference, the verdict.

    Attributes:
        pairs: Every two variants that are compared.
        measures: In what.
        allowed: Whether a pair may be compared in a measure.
    """

    pairs: Callable[[Run], Iterable[tuple[Variant, Variant]]]
    measures: Measures
    allowed: Callable[[Variant, Variant, Measure], bool] = lambda ours, other, measure: True

    def table(self, run: Run) -> Table:
        """The table of a run."""
        compared = [
            paired_by_seed(ours, other, measure)
            for ours, other in self.pairs(run)
            for measure in given(self.measures, run)
            if self.allowed(ours, other, measure)
        ]
        table = compared_table(p for p in compared if p.verdict() != "not measured")
        return replace(table, name="comparisons", title="Every comparison")


@dataclass(frozen=True)
class Own:
    """A table that its page makes itself."""

    make: Callable[[Run], Table]

    def table(self, run: Run) -> Table:
        """The table of a run."""
        return self.make(run)


def compared_table(compared: Iterable[Paired], *, decide: int = MIN_SEEDS) -> Table:
    """One row per comparison; fewer seeds than ``decide`` decide nothing."""
    head = (
        *("Variant", "Compared with", "Measure", "Value", "Other value"),
        *("Difference or ratio", "95 % interval from", "to", "Seeds", "Verdict"),
    )
    keys = (
        *("variant", "compared_with", "measure", "value", "other_value", "difference_or_ratio"),
        *("low", "high", "seeds", "verdict"),
    )
    rows = tuple(_compared_row(paired, decide) for paired in compared)
    empty = "No two variants finished the same seed, so nothing is compared."
    return Table("", "", head, keys, rows, empty=empty)


def without_constants(table: Table, keys: Sequence[str]) -> Table:
    """The table without those of these columns that say the same in every row; its note does."""
    same = [
        i
        for i, key in enumerate(table.keys)
        if key in keys and len({row[i].shown for row in table.rows}) == 1
    ]
    kept = [i for i in range(len(table.keys)) if i not in same]
    note = " ".join(f"{table.head[i]}: {table.rows[0][i].shown}." for i in same)
    return replace(
        table,
        head=tuple(table.head[i] for i in kept),
        keys=tuple(table.keys[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
        note=f"{table.note} {note}".strip(),
    )


def _compared_row(paired: Paired, decide: int) -> tuple[Cell, ...]:
    measure, signed = paired.measure, not paired.measure.logarithmic
    values = (measure.mean(paired.ours), measure.mean(paired.other))
    changes = (paired.change, *paired.interval)
    return (
        Cell(paired.ours.title),
        Cell(paired.other.title),
        Cell(measure.heading),
        *(_shown(measure.show_value(value), value) for value in values),
        *(_shown(measure.show_value(v, signed=signed), v) for v in changes),
        Cell(str(paired.count), exact=str(paired.count)),
        Cell(WORDS[paired.verdict(decide)]),
    )


def _shown(shown: str, value: float) -> Cell:
    return Cell(shown, exact="" if math.isnan(value) else repr(value))


def interval(paired: Paired) -> str:
    """The 95 % interval as text; empty for fewer than two seeds."""
    low, high = paired.interval
    if math.isnan(low):
        return ""
    signed = not paired.measure.logarithmic
    show = paired.measure.show_value
    return f"{show(low, signed=signed)} to {show(high, signed=signed)}"


def _difference(variant: Variant, other: Variant | None, measure: Measure) -> Cell:
    if other is None or variant is other:
        return Cell(MISSING, Spread.of(()))
    paired = paired_by_seed(variant, other, measure)
    if not paired.count:
        return Cell(MISSING, paired.difference)
    shown = measure.show_value(paired.change, signed=not measure.logarithmic)
    return Cell(shown, paired.difference, aside=interval(paired))


def mean_cell(variant: Variant, measure: Measure) -> Cell:
    """Mean and spread over the finished seeds of a variant."""
    spread = measure.over_seeds(variant)
    if not spread and any(math.isinf(measure.read(seed)) for seed in variant.finished):
        return Cell("infinite", spread)
    return Cell(measure.show(spread), spread, aside=measure.aside(variant) if spread else "")


def value_cell(value: float) -> Cell:
    """A recorded number: five digits on the page, all of them in the CSV file."""
    if math.isnan(value):
        return Cell(MISSING)
    if math.isinf(value):
        return Cell("infinite", exact="inf")
    exact = f"{value:.0f}" if value.is_integer() else repr(value)
    return Cell(exact if value.is_integer() else f"{value:.5g}", exact=exact)


def given(declared: Sequence[T] | Callable[[Run], Sequence[T]], run: Run) -> Sequence[T]:
    """What a page declares for every run, or computes for this one."""
    return declared(run) if callable(declared) else declared
