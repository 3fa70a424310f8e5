"""Reads one figure out of a kept record in ``benchmarks/results``; nothing is typed in here.

A selector names a file and a place in it. It finds a number with its interval, or that the file is
not there yet. Where the file is there and the place is not, it raises: a record has changed.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from orthotrain.errors import DataError
from orthotrain.lab.report.stats import short

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"

_NUMBER: Final = r"[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?"
_TIMED: Final = re.compile(rf"({_NUMBER}) \[({_NUMBER}), ({_NUMBER})\]")
_MARGIN: Final = re.compile(rf"({_NUMBER}) *(?:\+-|±) *({_NUMBER})")
_TOLERANCE: Final = 1e-6
# What earlier tables call the training without a treatment.
_OLD: Final = {"none": "baseline", "none, SGD": "baseline, SGD"}


@dataclass(frozen=True)
class Found:
    """A figure.

    Attributes:
        value: A difference, a ratio, or a share.
        low: Lower end of its interval.
        high: Upper end.
        neutral: What it would be without an effect: 0 of a difference, 1 of a ratio.
        text: As the page shows it.
        control: What it is compared with.
        seeds: Seeds behind it; None for a timing or a count.
    """

    value: float
    low: float
    high: float
    neutral: float
    text: str
    control: str
    seeds: int | None = None


@dataclass(frozen=True)
class Selector(ABC):
    """A place in a record.

    Attributes:
        record: Stem of the file, without what is put behind it.
    """

    record: str
    # What is put behind it.
    ending: ClassVar[str]

    def find(self, folder: Path) -> Found | None:
        """The figure; None where the record, or a second seed in it, does not exist yet.

        Raises:
            DataError: The file is there, and the place in it is not.
        """
        path = self.path(folder)
        return self.read(path) if path.exists() else None

    @abstractmethod
    def read(self, path: Path) -> Found | None:
        """The same, out of the file."""

    def command(self, folder: Path) -> str | None:
        """What made it, where the record itself says so. Tables of a run do not."""
        return None

    def path(self, folder: Path) -> Path:
        """The file."""
        return folder / f"{self.record}{self.ending}"


@dataclass(frozen=True)
class Compared(Selector):
    """A row of a table of comparisons: two variants in one measure, paired by seed."""

    ending = "_comparisons.csv"
    ours: str
    other: str
    measure: str

    def read(self, path: Path) -> Found | None:
        """None where no seed of both is finished."""
        wanted = (self.ours, self.other, self.measure.lower())
        for row in _cells(path):
            if (row[0], row[1], row[2].lower()) == wanted:
                value, other, change, low, high = (float(cell or "nan") for cell in row[3:8])
                return _compared(path, (value, other), (change, low, high), row, self.other)
        results = path.with_name(f"{self.record}_results.csv")
        if results.exists() and {self.ours, self.other} <= {
            row["variant"] for row in _rows(results)
        }:
            return None
        raise DataError(f"{path} has no comparison {wanted}; select one of those that it has")


def _compared(
    path: Path,
    values: tuple[float, float],
    change: tuple[float, float, float],
    row: list[str],
    other: str,
) -> Found:
    mine, theirs = values
    ratio = _close(mine, theirs * change[0])
    if not ratio and not _close(mine, theirs + change[0]):
        raise DataError(f"{path}: {row} is neither a difference nor a ratio of its values")
    unit = _unit(row[2])
    ends = f"{_signed(change[1], ratio)} to {_signed(change[2], ratio)}"
    text = f"{short(mine)} against {short(theirs)}: {_signed(change[0], ratio)}"
    text += f"{' times' if ratio else unit}{'' if math.isnan(change[1]) else f' ({ends})'}"
    return Found(*change, float(ratio), text, _OLD.get(other, other), int(row[8]))


@dataclass(frozen=True)
class BySeed(Selector):
    """Two variants in a column of the table of seeds, paired by seed.

    Where ``after`` is given, the other one is read in the column with that ending, and the page
    calls it by ``told``.
    """

    ending = "_seeds.csv"
    ours: str
    other: str
    column: str
    unit: str = ""
    after: str = ""
    told: str = ""

    def read(self, path: Path) -> Found | None:
        """The mean difference with Student's interval."""
        rows = {(row["variant"], row["seed"]): row for row in _rows(path)}
        if not {self.ours, self.other} <= {name for name, _ in rows}:
            raise DataError(f"{path} does not have both of {self.ours!r} and {self.other!r}")
        cells = [
            (row[self.column], rows[self.other, seed][self.column + self.after])
            for (name, seed), row in rows.items()
            if name == self.ours and (self.other, seed) in rows
        ]
        pairs = [(float(mine), float(other)) for mine, other in cells if mine and other]
        if len(pairs) < 2:  # One seed has no interval and decides nothing.
            return None
        change = [mine - theirs for mine, theirs in pairs]
        mean = statistics.fmean(change)
        margin = _student(len(change) - 1) * statistics.stdev(change) / math.sqrt(len(change))
        mine, theirs = (short(statistics.fmean(side)) for side in zip(*pairs, strict=True))
        low, high = mean - margin, mean + margin
        text = f"{mine} against {theirs}: {_signed(mean)}{self.unit}"
        text += f" ({_signed(low)} to {_signed(high)})"
        return Found(mean, low, high, 0.0, text, self.told or self.other, len(change))


@dataclass(frozen=True)
class Share(Selector):
    """A cell of a table of results with its spread, in percent of dense."""

    ending = "_results.csv"
    variant: str
    column: str

    def read(self, path: Path) -> Found:
        """The cell with Student's interval."""
        mean, std, seeds = _cell(path, self.variant, self.column)
        margin = _student(seeds - 1) * std / math.sqrt(seeds)
        text = f"{short(mean)} % of dense ({short(mean - margin)} to {short(mean + margin)})"
        return Found(mean, mean - margin, mean + margin, 100.0, text, "dense", seeds)


@dataclass(frozen=True)
class Unpaired(Selector):
    """Two cells of a table of results, where the comparison by seed was not kept."""

    ending = "_results.csv"
    ours: str
    other: str
    column: str

    def read(self, path: Path) -> Found:
        """The difference with Welch's interval."""
        mine, my_std, seeds = _cell(path, self.ours, self.column)
        theirs, their_std, others = _cell(path, self.other, self.column)
        parts = (my_std**2 / seeds, their_std**2 / others)
        error = math.sqrt(sum(parts))
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / (others - 1))
        margin, change = _student(freedom) * error, mine - theirs
        ends = f"{_signed(change - margin)} to {_signed(change + margin)}"
        text = f"{short(mine)} against {short(theirs)}: {_signed(change)} ({ends}; not paired)"
        low, high = change - margin, change + margin
        return Found(change, low, high, 0.0, text, self.other, min(seeds, others))


@dataclass(frozen=True)
class Timed(Selector):
    """A cell of a printed table of a benchmark: ``.54 [.51, .56]``, or ``+.64 ± 1.12``.

    Attributes:
        row: How its line begins, spaces counted as one.
        column: Heading above it.
        table: A line above the heading, for a file of several tables; the first one when empty.
        target: At most so much is what the claim says; 1 for faster, 0 for a difference.
        control: What it is compared with.
    """

    ending = ".txt"
    row: str
    column: str
    table: str = ""
    target: float = 1.0
    control: str = ""

    def read(self, path: Path) -> Found:
        """The cell with what stands beside it."""
        cell = self._cell(path)
        if found := _TIMED.search(cell):
            value, low, high = (float(part.replace(",", "")) for part in found.groups())
            text = f"{value:.3f} ({low:.3f} to {high:.3f}, middle half)"
        elif found := _MARGIN.search(cell):
            value, margin = float(found[1]), float(found[2])
            low, high = value - margin, value + margin
            text = f"{value:+.3g} ({low:+.3g} to {high:+.3g})"
        else:
            raise DataError(f"{path}: {cell!r} under {self.column!r} is no number with an interval")
        return Found(value, low, high, self.target, text, self.control)

    def _cell(self, path: Path) -> str:
        lines = iter(_lines(path))
        if self.table:
            next((line for line in lines if line.startswith(self.table)), None)
        starts: list[int] = []
        for line in lines:
            heads = [(m[0], m.start()) for m in re.finditer(r"\S+(?: \S+)*", line)]
            mine = [start for head, start in heads if head == self.column]
            if len(mine) == 1:
                starts = [*mine, *(start for _, start in heads)]
            if starts and " ".join(line.split()).startswith(self.row):
                end = min((place for place in starts if place > starts[0]), default=len(line))
                return line[starts[0] : end]
        raise DataError(f"{path} has no line {self.row!r} below a column {self.column!r}")

    def command(self, folder: Path) -> str | None:
        """The line of the file that begins with a prompt, the last one above the table."""
        said = None
        for line in _lines(self.path(folder)):
            if " ".join(line.split()).startswith(self.row):
                break
            if line.startswith("$ "):
                said = line[2:].split("#")[0].split("   ")[0].strip()
        return said


@dataclass(frozen=True)
class Counted(Selector):
    """All lines ``N of M WHAT`` of a file: whether N is M in each."""

    ending = ".txt"
    what: str

    def read(self, path: Path) -> Found:
        """The share, 1 where nothing is missing."""
        pattern = rf"(\d+) of (\d+) {re.escape(self.what)}"
        counts = [(int(a), int(b)) for a, b in re.findall(pattern, path.read_text())]
        if not counts:
            raise DataError(f"{path} has no line 'N of M {self.what}'")
        right, every = (sum(side) for side in zip(*counts, strict=True))
        text = f"{right} of {every} {self.what}"
        return Found(right / every, right / every, right / every, 1.0, text, "a run without a kill")

    def command(self, folder: Path) -> str | None:
        """The first line of the file that begins with a prompt."""
        said = (line for line in _lines(self.path(folder)) if line.startswith("$ "))
        return next((line[2:].split("   ")[0] for line in said), None)


@dataclass(frozen=True)
class Tested(Selector):
    """A test that every change has to pass, in place of a record."""

    ending = ""
    name: str
    control: str

    def find(self, folder: Path) -> Found:
        """That it exists, wherever records are."""
        return self.read(ROOT / self.record)

    def read(self, path: Path) -> Found:
        """The same, out of the file of the test."""
        if not path.exists() or f"def {self.name}(" not in path.read_text(encoding="utf-8"):
            raise DataError(f"{self.record} has no test {self.name}")
        return Found(1.0, 1.0, 1.0, 1.0, "equal, tested", self.control)

    def command(self, folder: Path) -> str | None:
        """The line that runs it."""
        return f"pytest {self.record} -k {self.name}"


def _cells(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _cell(path: Path, variant: str, column: str) -> tuple[float, float, int]:
    for row in _rows(path):
        if row["variant"] == variant:
            seeds = int(row["seeds"].split(" ")[0])
            return float(row[column]), float(row[f"{column}_std"] or "nan"), seeds
    raise DataError(f"{path} has no variant {variant!r}")


def _student(freedom: float) -> float:
    from scipy.stats import t as student

    return float(student.ppf(0.975, freedom))


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=1e-9)


def _unit(measure: str) -> str:
    found = re.search(r" \(([^()]*)\)$", measure)
    if found is None:
        return ""
    return " points" if found[1].startswith("%") else f" {found[1]}"


def _signed(value: float, ratio: bool = False) -> str:
    text = short(value)
    return text if ratio or value <= 0 else f"+{text}"
