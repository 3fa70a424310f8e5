"""Ready ways to read a number of a finished training: from its result, or from its records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Final

from orthotrain.lab.report.load import SeedRun
from orthotrain.lab.report.rows import Row, number
from orthotrain.lab.report.stats import Better, Measure, geometric_mean

# The end of a training is the last tenth of its records.
_END: Final = 0.1
MIB: Final = 2.0**20


def result(
    key: str, title: str, *, scale: float = 1.0, unit: str = "", digits: int | None = None,
    better: Better = "",
) -> Measure:  # fmt: skip
    """``result.json``'s number ``key`` times ``scale``."""
    return Measure(key, title, lambda seed: seed.final(key) * scale, unit, digits, better)


def step_time(key: str = "step_ms", title: str = "Time per step") -> Measure:
    """A time per step of the result, in milliseconds."""
    return result(key, title, unit="ms", digits=2, better="less")


SECONDS: Final = result("seconds", "Whole training", unit="s", digits=1, better="less")
TRAINING_MEMORY: Final = result(
    "training_bytes", "Training memory at the end", scale=1 / MIB, unit="MiB", digits=2,
    better="less",
).named("training_mib")  # fmt: skip
PEAK_MEMORY: Final = result(
    "peak_rss_bytes", "Peak memory of the process", scale=1 / MIB, unit="MiB", digits=0,
    better="less",
).named("peak_rss_mib")  # fmt: skip


def accuracy(split: str) -> Measure:
    """The accuracy on the part of the data called ``split``, in percent."""
    return result(
        f"{split}_accuracy", f"{split.capitalize()} accuracy", scale=100.0, unit="%", digits=2,
        better="more",
    ).named(f"{split}_accuracy_percent")  # fmt: skip


def error(split: str) -> Measure:
    """100 % less the accuracy on the part of the data called ``split``."""
    return Measure(
        f"{split}_error_percent", f"{split.capitalize()} error",
        lambda seed: 100.0 * (1.0 - seed.final(f"{split}_accuracy")), "%", 2, "less",
    )  # fmt: skip


def raw(*keys: str) -> tuple[Measure, ...]:
    """Numbers of the result as recorded, one measure each."""
    return tuple(result(key, key.replace("_", " ")) for key in keys)


def group(seed: SeedRun, name: str) -> dict[str, float]:
    """The numbers of an object in the result, such as its ``scores``; empty without."""
    found = seed.result.get(name) if seed.result is not None else None
    if not isinstance(found, dict):
        return {}
    known = {str(key): number(found, key) for key in found}
    return {key: value for key, value in known.items() if not math.isnan(value)}


def end_values(
    seed: SeedRun, kind: str, value: Callable[[Row], float], **where: object
) -> list[float]:
    """A number of the lines of a kind in the last tenth of the steps that have such lines.

    Args:
        seed: One training.
        kind: Which lines.
        value: The number of one line; NaN is left out.
        where: Fields that the lines must have.
    """
    rows = [
        row
        for row in seed.of_kind(kind)
        if all(row.get(name) == wanted for name, wanted in where.items())
    ]
    steps = sorted({number(row, "step") for row in rows})
    last = set(steps[-max(1, math.ceil(_END * len(steps))) :]) if steps else set()
    values = [value(row) for row in rows if number(row, "step") in last]
    return [value for value in values if not math.isnan(value)]


def typical(values: Iterable[float]) -> float:
    """The geometric mean; infinite where more than half of the values are."""
    values = list(values)
    if 2 * sum(map(math.isinf, values)) > len(values):
        return math.inf
    return geometric_mean(values)


def mean(values: Iterable[float]) -> float:
    """The mean; NaN of nothing."""
    values = list(values)
    return statistics.fmean(values) if values else math.nan


def median(values: Iterable[float]) -> float:
    """The median of the finite values; NaN where there is none."""
    kept = [value for value in values if math.isfinite(value)]
    return statistics.median(kept) if kept else math.nan
