"""Variants held against each other seed by seed, in any measure, with a 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from orthotrain.lab.report.load import SeedRun, Variant
from orthotrain.lab.report.tables import Spread


@dataclass(frozen=True)
class Measure:
    """One thing that variants are compared in; less of it is better.

    Attributes:
        key: Its name in records and CSV files.
        title: What the page calls it.
        value: Its value in one finished seed; NaN where missing, infinite where it is.
        logarithmic: Compared as a ratio, not as a difference.
    """

    key: str
    title: str
    value: Callable[[SeedRun], float]
    logarithmic: bool


def over_seeds(variant: Variant, measure: Measure) -> Spread:
    """A measure over the finished seeds; of a ratio the decimal logarithm, infinities left out."""
    values = (measure.value(seed) for seed in variant.finished)
    return Spread.of(_logarithm(v) for v in values) if measure.logarithmic else Spread.of(values)


def _logarithm(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


# 97.5 % quantiles of Student's t for 1 to 20 degrees of freedom, to three decimals: any table of
# the distribution; tests/lab/report recompute them by integration. Beyond 20 the
# last one is kept, which makes the interval a little too wide.
T_QUANTILES: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)

Outcome = Literal["lower", "higher", "inside", "single", "infinite", "unknown"]


@dataclass(frozen=True)
class Paired:
    """One variant against another in one measure, over the seeds that both finished.

    Attributes:
        ours: The variant.
        other: What it is held against.
        measure: In what.
        difference: Ours less the other's, one value a seed; decimal logarithms for a ratio.
        infinite: Seeds of which one or both values are infinite, so without a difference.
    """

    ours: Variant
    other: Variant
    measure: Measure
    difference: Spread
    infinite: int

    @property
    def count(self) -> int:
        """How many seeds have a difference."""
        return len(self.difference.values)

    @property
    def margin(self) -> float:
        """Half of the 95 % interval by Student's t; NaN for fewer than two seeds."""
        if self.count < 2:
            return math.nan
        quantile = T_QUANTILES[min(self.count - 1, len(T_QUANTILES)) - 1]
        return quantile * self.difference.std / math.sqrt(self.count)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, or of the ratio."""
        ends = (self.difference.mean - self.margin, self.difference.mean + self.margin)
        return (_power(ends[0]), _power(ends[1])) if self.measure.logarithmic else ends

    @property
    def ratio(self) -> float:
        """Ours over the other's, geometric mean over seeds."""
        return _power(self.difference.mean)

    @property
    def outcome(self) -> Outcome:
        """Lower and higher only where the 95 % interval leaves no change outside."""
        if self.infinite:
            return "infinite"
        if not self.count:
            return "unknown"
        if self.count < 2:
            return "single"
        if abs(self.difference.mean) <= self.margin:
            return "inside"
        return "lower" if self.difference.mean < 0 else "higher"


def _power(exponent: float) -> float:
    """``10**exponent``, infinite beyond what a float holds: two seeds can be that far apart."""
    return math.inf if exponent > 300 else 10.0**exponent


def paired_by_seed(ours: Variant, other: Variant, measure: Measure) -> Paired:
    """Compare by seed: the same seed has the same initial weights and the same batches."""
    theirs = {seed.seed: measure.value(seed) for seed in other.finished}
    pairs = [(measure.value(s), theirs[s.seed]) for s in ours.finished if s.seed in theirs]
    known = [pair for pair in pairs if not any(map(math.isnan, pair))]
    finite = [pair for pair in known if not any(map(math.isinf, pair))]
    take = _logarithm if measure.logarithmic else float
    difference = Spread.of(take(a) - take(b) for a, b in finite)
    return Paired(ours, other, measure, difference, len(known) - len(finite))
