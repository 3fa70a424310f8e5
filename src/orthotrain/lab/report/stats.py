"""Numbers over seeds: what is measured, its spread, and two variants compared seed by seed.

There is one rule. The same seed has the same initial weights and the same data in every variant,
so variants are compared by seed. A difference counts where its 95 % interval by Student's t
excludes zero, and where enough seeds took part.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from orthotrain.lab.report.load import SeedRun, Variant

MISSING: Final = "\N{EN DASH}"
# Between a geometric mean and the factor of one standard deviation of its logarithm.
TIMES_OVER: Final = "\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}"
#: So many seeds decide a claim; of fewer a spread says almost nothing.
MIN_SEEDS: Final = 3

Better = Literal["more", "less", ""]


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


@dataclass(frozen=True)
class Measure:
    """One number of a finished training: a column of tables, and what claims compare.

    Attributes:
        key: Its name in CSV files; of a logarithmic one ``log10_`` is put before it.
        title: What the page calls it.
        read: Its value in one finished seed; NaN where missing, infinite where it is.
        unit: Behind the title, such as ``%``; may be empty.
        digits: Decimals shown; ``None`` shows three digits of any size.
        better: Which direction is better; empty where neither is.
        logarithmic: Averaged as a geometric mean and compared as a ratio.
        aside: What a table shows in parentheses behind the number.
    """

    key: str
    title: str
    read: Callable[[SeedRun], float]
    unit: str = ""
    digits: int | None = None
    better: Better = ""
    logarithmic: bool = False
    aside: Callable[[Variant], str] = lambda variant: ""

    @property
    def column(self) -> str:
        """Name of its column in a CSV file of spreads."""
        return f"log10_{self.key}" if self.logarithmic else self.key

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def named(self, key: str) -> Measure:
        """The same with another name in CSV files."""
        return replace(self, key=key)

    def over_seeds(self, variant: Variant) -> Spread:
        """Over finished seeds; decimal logarithms of a logarithmic one, infinities left out."""
        return Spread.of(self._taken(self.read(seed)) for seed in variant.finished)

    def mean(self, variant: Variant) -> float:
        """Mean over finished seeds, geometric for a logarithmic one; NaN without a value."""
        return self._given(self.over_seeds(variant).mean)

    def _taken(self, value: float) -> float:
        return log10(value) if self.logarithmic else value

    def _given(self, value: float) -> float:
        return power(value) if self.logarithmic else value

    def show(self, spread: Spread) -> str:
        """A spread over seeds, of decimal logarithms as mean and factor."""
        if not self.logarithmic and self.digits is not None:
            return spread.show(self.digits)
        if not spread:
            return MISSING
        sign = TIMES_OVER if self.logarithmic else "±"
        shown = short(self._given(spread.mean))
        return f"{shown} {sign} {short(self._given(spread.std))}" if spread.std >= 0 else shown

    def show_value(self, value: float, *, signed: bool = False) -> str:
        """One number, with its sign where it is a difference."""
        if self.digits is None or self.logarithmic or not math.isfinite(value):
            return short(value)
        return f"{value:{'+' if signed else ''},.{self.digits}f}"


def short(value: float) -> str:
    """Three digits: ``680``, ``5.31``; from 10,000 on and below 0.001 as ``6.8e4``."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "infinite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def log10(value: float) -> float:
    """The decimal logarithm; NaN where there is none."""
    return math.log10(value) if value > 0 else math.nan


def power(exponent: float) -> float:
    """``10**exponent``, infinite beyond what a float holds: two seeds can be that far apart."""
    return math.inf if exponent > 300 else 10.0**exponent


def geometric_mean(values: Iterable[float]) -> float:
    """Of the positive finite values; NaN where there is none."""
    kept = [math.log10(value) for value in values if 0 < value < math.inf]
    return 10 ** statistics.fmean(kept) if kept else math.nan


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's coefficient of pairs without NaN; NaN for fewer than three or a constant side."""
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


Verdict = Literal["better", "worse", "higher", "lower", "within", "few", "infinite", "not measured"]


@dataclass(frozen=True)
class Paired:
    """One variant compared with another in one measure, over the seeds that both finished.

    Attributes:
        ours: The variant.
        other: What it is compared with.
        measure: In what.
        difference: Ours less the other's, one value per seed; decimal logarithms for a ratio.
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
        from scipy.stats import t as student

        quantile = float(student.ppf(0.975, self.count - 1))
        return quantile * self.difference.std / math.sqrt(self.count)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, or of the ratio."""
        ends = (self.difference.mean - self.margin, self.difference.mean + self.margin)
        return (power(ends[0]), power(ends[1])) if self.measure.logarithmic else ends

    @property
    def change(self) -> float:
        """The mean difference; of a logarithmic measure the ratio, a geometric mean."""
        mean = self.difference.mean
        return power(mean) if self.measure.logarithmic else mean

    def verdict(self, decide: int = MIN_SEEDS) -> Verdict:
        """What the seeds allow to say, the same rule for every measure.

        Args:
            decide: With fewer seeds than this nothing is decided.
        """
        if self.infinite:
            return "infinite"
        if not self.count:
            return "not measured"
        if self.count < max(decide, 2):
            return "few"
        if abs(self.difference.mean) <= self.margin:
            return "within"
        higher = self.difference.mean > 0
        if not self.measure.better:
            return "higher" if higher else "lower"
        return "better" if higher == (self.measure.better == "more") else "worse"


def paired_by_seed(ours: Variant, other: Variant, measure: Measure) -> Paired:
    """Compare the seeds that both finished."""
    theirs = {seed.seed: measure.read(seed) for seed in other.finished}
    pairs = [(measure.read(s), theirs[s.seed]) for s in ours.finished if s.seed in theirs]
    known = [pair for pair in pairs if not any(map(math.isnan, pair))]
    finite = [pair for pair in known if not any(map(math.isinf, pair))]
    take = log10 if measure.logarithmic else float
    difference = Spread.of(take(a) - take(b) for a, b in finite)
    return Paired(ours, other, measure, difference, len(known) - len(finite))
