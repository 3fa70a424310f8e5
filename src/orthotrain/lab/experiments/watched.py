"""Columns and panels that the pages of several families share: conditions, NOG and OLR."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from orthotrain.lab.report.figures import Panel, Variants
from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.measures import end_values, typical
from orthotrain.lab.report.rows import Row, field, number
from orthotrain.lab.report.stats import Measure

NOG: Final = "nearest_orthogonal_gradient"
OLR: Final = "optimal_learning_rate"
_NAIVE: Final = ("condition_float32", "condition_float64")


def condition(what: str, key: str, title: str, *, better: bool = True) -> Measure:
    """A number of the condition records of ``what`` at the end of training, geometric mean.

    A naive condition number that is null is infinite where the matrix had any numbers at all,
    that is, a rank, and was decomposed itself. A ridge of zero is recorded as a null condition,
    which is no value.
    """

    def at_end(seed: SeedRun) -> float:
        return typical(end_values(seed, "condition", reading(key), what=what))

    return Measure(key, title, at_end, better="less" if better else "", logarithmic=True)


def condition_values(variant: Variant, what: str, key: str) -> list[float]:
    """All values behind :func:`condition`, of every finished seed."""
    value = reading(key)
    return [v for s in variant.finished for v in end_values(s, "condition", value, what=what)]


def reading(key: str) -> Callable[[Row], float]:
    """How a line of condition records is read; see :func:`condition`."""

    def value(row: Row) -> float:
        unknown = row.get("route") == "gram"  # a Gram matrix does not tell naive numbers
        null = key in _NAIVE and key in row and row[key] is None and not unknown
        return math.inf if null and row.get("rank") is not None else number(row, key)

    return value


def condition_panel(what: str, key: str, title: str, variants: Variants) -> Panel:
    """The same over training."""
    return Panel(title, "condition", field(key, what=what), variants, log=True)


def method_rows(seed: SeedRun, method: str) -> Sequence[Row]:
    """The records of one gradient method."""
    return [row for row in seed.of_kind("method") if row.get("method") == method]


def rate_ratio(row: Row) -> float:
    """``eta / lr`` where the optimal learning rate was used; NaN elsewhere."""
    rate = number(row, "lr")
    used = row.get("method") == OLR and row.get("used") is True and rate > 0
    return number(row, "eta") / rate if used else math.nan


def share_used(seed: SeedRun) -> float:
    """The share of its steps in which the optimal learning rate was used; NaN without a record.

    Of all steps where the records count them, of the recorded ones in older runs.
    """
    rows = method_rows(seed, OLR)
    if rows and math.isfinite(share := number(rows[-1], "used_share")):
        return share
    return sum(row.get("used") is True for row in rows) / len(rows) if rows else math.nan


def olr_used(key: str, *, digits: int) -> Measure:
    """:func:`share_used` in percent."""
    title = "OLR used"
    return Measure(key, title, lambda seed: 100 * share_used(seed), "% of steps", digits)


def _used(row: Row) -> float:
    used = row.get("used") if row.get("method") == OLR else None
    return float(used) if isinstance(used, bool) else math.nan


def treated(treatment: str) -> Variants:
    """The variants with a treatment."""

    def variants(run: Run) -> list[Variant]:
        return [variant for variant in run.variants if treatment in variant.treatments]

    return variants


#: What the optimal learning rate did over training.
OLR_PANELS: Final = (
    Panel("OLR's rate over the scheduled rate", "method", rate_ratio, treated("olr"), log=True),
    Panel("Share of steps in which OLR was used", "method", _used, treated("olr"), reduce="mean"),
)
