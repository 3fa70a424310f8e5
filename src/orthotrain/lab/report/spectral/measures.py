"""What a spectral run measured: condition at the end, in four senses, and comparisons by seed.

A condition number alone means little: the same covariance reads 7e2 with its ridge, 8e5 on its
range and 3e16 in float64, where the smallest eigenvalues are rounding. So every number here is
of a named sense, and no sense stands for the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.paired import Measure, Paired, paired_by_seed
from orthotrain.lab.report.rows import Row, number, text
from orthotrain.lab.report.tables import Spread

# The end of a training is the last tenth of its records.
_END: Final = 0.1


def end_values(seed: SeedRun, what: str, key: str) -> list[float]:
    """One field in the last tenth of the condition records of ``what``; null is infinite.

    A ridge of zero is recorded as a null condition, which is no value at all and left out.
    """
    rows = [row for row in seed.rows.get("condition", ()) if row.get("what") == what]
    steps = sorted({number(row, "step") for row in rows})
    last = set(steps[-max(1, math.ceil(_END * len(steps))) :]) if steps else set()
    values = [_value(row, key) for row in rows if number(row, "step") in last]
    return [value for value in values if not math.isnan(value)]


def _value(row: Row, key: str) -> float:
    """Null is an infinite number where the matrix had any numbers at all, that is, a rank."""
    naive = key in ("condition_float32", "condition_float64") and key in row
    if naive and row[key] is None and row.get("rank") is not None:
        return math.inf
    return number(row, key)


def geometric_mean(values: Iterable[float]) -> float:
    """Of the positive finite values; NaN where there is none."""
    kept = [math.log10(value) for value in values if 0 < value < math.inf]
    return 10 ** statistics.fmean(kept) if kept else math.nan


def end_of(what: str, key: str) -> Callable[[SeedRun], float]:
    """Geometric mean over the last tenth of records; infinite where most of them are."""

    def value(seed: SeedRun) -> float:
        values = end_values(seed, what, key)
        if 2 * sum(map(math.isinf, values)) > len(values):
            return math.inf
        return geometric_mean(values)

    return value


def end_rank(seed: SeedRun) -> tuple[float, float]:
    """Mean numerical rank of the covariance in the last tenth of records, and its size."""
    ranks, sizes = (end_values(seed, "covariance", key) for key in ("rank", "size"))
    return _mean(ranks), _mean(sizes)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


SENSES: Final = tuple(
    Measure(key, title, end_of("covariance", key), True)
    for key, title in (
        ("condition_range", "on the range"),
        ("condition_ridge", "with the ridge"),
        ("condition_float32", "naive, float32"),
        ("condition_float64", "naive, float64"),
    )
)
RIDGED: Final = SENSES[1]
RIDGE: Final = Measure("ridge", "ridge", end_of("covariance", "ridge"), logarithmic=True)
LARGEST: Final = Measure(
    "largest", "largest eigenvalue", end_of("covariance", "largest"), logarithmic=True
)
TEST_ERROR: Final = Measure(
    "test_error",
    "test error (%)",
    lambda seed: 100.0 * (1.0 - seed.final("test_accuracy")),
    logarithmic=False,
)
VALIDATION_ERROR: Final = Measure(
    "validation_error",
    "validation error (%)",
    lambda seed: 100.0 * (1.0 - seed.final("validation_accuracy")),
    logarithmic=False,
)


# --- which variant is which ---------------------------------------------------------------------


def parts(variant: Variant) -> frozenset[str]:
    """What is done beyond taking the root: ``{"nog", "ow"}``; empty for the root alone."""
    return frozenset(variant.treatments) - {"root"}


def find(run: Run, *wanted: str) -> Variant | None:
    """The variant with exactly these treatments on top of the root; none given: the root alone."""
    candidates = (v for v in run.variants if v.treatments)
    return next((v for v in candidates if parts(v) == set(wanted)), None)


def is_pooling(run: Run) -> bool:
    """Whether the spectral layer is covariance pooling; whitening otherwise."""
    return run.baseline_name == "avg" or text(run.info, "recipe").endswith("gcp")


def group_of(run: Run, variant: Variant) -> Literal["reference", "single", "combination", "fixed"]:
    """Where a variant stands in figures that show many of them."""
    done = parts(variant)
    if "fixed" in done:
        return "fixed"
    if variant is run.baseline or not done:
        return "reference"
    return "single" if len(done) == 1 else "combination"


def reference_of(run: Run, variant: Variant) -> Variant | None:
    """What a variant is held against: the root alone, for a fixed norm with that norm fixed.

    ``None`` for the root alone itself, and where the reference is not part of the run.
    """
    done = parts(variant)
    found = find(run, "fixed") if "fixed" in done and len(done) > 1 else find(run)
    return None if found is variant else found


def direct_parts(run: Run, variant: Variant) -> tuple[Variant, ...]:
    """The largest combinations in the run that are part of this one, all of one size."""
    mine = parts(variant)
    if len(mine) < 2 or "fixed" in mine:
        return ()
    within = [v for v in run.variants if v.treatments and parts(v) < mine and parts(v)]
    largest = max((len(parts(v)) for v in within), default=0)
    return tuple(v for v in within if len(parts(v)) == largest)


# --- comparisons --------------------------------------------------------------------------------


def compare(ours: Variant, other: Variant, measure: Measure) -> Paired:
    """Compare by seed: the same seed has the same initial weights and the same batches.

    The condition with the ridge is not compared with a network without the layer: a batch norm's
    eps is another ridge.
    """
    if measure is RIDGED and bool(ours.treatments) != bool(other.treatments):
        return Paired(ours, other, measure, Spread.of(()), 0)
    return paired_by_seed(ours, other, measure)


def condition_outcomes(ours: Variant, other: Variant) -> list[Paired]:
    """The comparison in each of the four senses that both recorded."""
    compared = (compare(ours, other, sense) for sense in SENSES)
    return [paired for paired in compared if paired.outcome != "unknown"]


# --- the optimal learning rate ------------------------------------------------------------------


def method_rows(seed: SeedRun, method: str) -> list[Row]:
    """The records of one gradient method."""
    return [row for row in seed.rows.get("method", ()) if row.get("method") == method]


def rate_ratio(row: Row) -> float:
    """``eta / lr`` where the optimal learning rate was used; NaN elsewhere."""
    rate = number(row, "lr")
    return number(row, "eta") / rate if row.get("used") is True and rate > 0 else math.nan


def share_used(seed: SeedRun) -> float:
    """The share of its steps in which the optimal learning rate was used; NaN without a record.

    Of all steps where the records count them, of the recorded ones in older runs.
    """
    rows = method_rows(seed, OLR)
    if rows and math.isfinite(share := number(rows[-1], "used_share")):
        return share
    return sum(row.get("used") is True for row in rows) / len(rows) if rows else math.nan


def median_of(seed: SeedRun, method: str, value: Callable[[Row], float]) -> float:
    """Median over the records of a method that have a finite value."""
    values = [v for row in method_rows(seed, method) if math.isfinite(v := value(row))]
    return statistics.median(values) if values else math.nan


@dataclass(frozen=True)
class Rates:
    """What the optimal learning rate of a variant did, over its finished seeds.

    Attributes:
        used: Share of the recorded steps in which it was used, in percent.
        ratio: Decimal logarithm of its median over the scheduled rate, where it was used.
        cosine: Decimal logarithm of the median of ``|cos(w, l)|``.
    """

    used: Spread
    ratio: Spread
    cosine: Spread


def rates_of(variant: Variant) -> Rates:
    """The rates of a variant; all empty without records of OLR."""
    return Rates(
        Spread.of(100 * share_used(seed) for seed in variant.finished),
        Spread.of(_logarithm(median_of(s, OLR, rate_ratio)) for s in variant.finished),
        Spread.of(_logarithm(median_of(s, OLR, _cosine)) for s in variant.finished),
    )


def _cosine(row: Row) -> float:
    return abs(number(row, "cosine"))


def _logarithm(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


NOG: Final = "nearest_orthogonal_gradient"
OLR: Final = "optimal_learning_rate"
