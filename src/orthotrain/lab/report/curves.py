"""From the lines of several seeds to one curve or one heat map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from orthotrain.lab.report.load import SeedRun, Variant
from orthotrain.lab.report.rows import Row, number, text
from orthotrain.lab.report.stats import geometric_mean

Array = npt.NDArray[np.float64]
Value = Callable[[Row], float]
Reduce = Literal["median", "mean", "hold"]


@dataclass(frozen=True)
class Curve:
    """A quantity over training: mean over seeds, with the lowest and the highest seed."""

    x: Array
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Series:
    """Which number of the records is drawn.

    Attributes:
        kind: Of the lines of ``metrics.jsonl``.
        value: The number of one line; lines that give no finite one are left out.
        x: The field that is the coordinate.
    """

    kind: str
    value: Value
    x: str = "step"

    def pairs(self, seed: SeedRun, layer: str | None = None) -> list[tuple[float, float]]:
        """Coordinate and value of each line of a training, of one layer or of all."""
        rows = (row for row in seed.of_kind(self.kind) if layer in (None, text(row, "layer")))
        found = ((number(row, self.x), self.value(row)) for row in rows)
        return [(x, y) for x, y in found if math.isfinite(x) and math.isfinite(y)]


def curve(
    variant: Variant,
    series: Series,
    *,
    bins: int | None = None,
    reduce: Reduce = "median",
    geometric: bool = False,
) -> Curve | None:
    """A number of the lines of a kind, as a curve over training.

    Args:
        variant: All its seeds count, finished or not, as far as their records go.
        series: Which number.
        bins: Cut the coordinates into this many stretches. ``None`` keeps each recorded one.
        reduce: How the lines of a seed within one stretch become one number. ``"hold"`` is for
            numbers that are written only where they change: each seed keeps its value until its
            next record, and past its end it does not count.
        geometric: Geometric mean over seeds; then only positive numbers count.

    Returns:
        The curve, or ``None`` where no line has a value.
    """
    if reduce == "hold":
        return _held_curve(variant, series)
    seeds = [
        [(x, y) for x, y in series.pairs(seed) if y > 0 or not geometric] for seed in variant.seeds
    ]
    last = max((place for pairs in seeds for place, _ in pairs), default=math.nan)
    if math.isnan(last):
        return None
    middle = np.median if reduce == "median" else np.mean
    by_place: dict[float, list[Array]] = {}
    for pairs in seeds:
        mine: dict[float, list[tuple[float, float]]] = {}
        for pair in pairs:
            place = min(pair[0] * bins // last, bins - 1) if bins and last > 0 else pair[0]
            mine.setdefault(place, []).append(pair)
        for place, gathered in mine.items():
            by_place.setdefault(place, []).append(middle(np.asarray(gathered), axis=0))
    ordered = [np.asarray(by_place[place]) for place in sorted(by_place)]
    mean = [geometric_mean(p[:, 1].tolist()) if geometric else p[:, 1].mean() for p in ordered]
    return Curve(
        x=np.array([pairs[:, 0].mean() for pairs in ordered]),
        mean=np.array(mean),
        low=np.array([pairs[:, 1].min() for pairs in ordered]),
        high=np.array([pairs[:, 1].max() for pairs in ordered]),
    )


def _held_curve(variant: Variant, series: Series) -> Curve | None:
    known = [series.pairs(seed) for seed in variant.seeds]
    if not any(known):
        return None
    ends = {float(s.last_step) for s, pairs in zip(variant.seeds, known, strict=True) if pairs}
    steps = np.array(sorted(ends.union(step for pairs in known for step, _ in pairs)))
    held = np.array([_hold(pairs, steps, s) for s, pairs in zip(variant.seeds, known, strict=True)])
    # Every step of the grid is a record or the end of some seed: no column is without a value.
    return Curve(steps, *(f(held, axis=0) for f in (np.nanmean, np.nanmin, np.nanmax)))


def _hold(pairs: Sequence[tuple[float, float]], steps: Array, seed: SeedRun) -> Array:
    """Each value from its step to the next one; NaN before the first and past the seed's end."""
    held = np.full(steps.shape, np.nan)
    for step, value in pairs:
        held[steps >= step] = value
    held[steps > seed.last_step] = np.nan
    return held


@dataclass(frozen=True)
class Grid:
    """A quantity per layer over training, mean over seeds.

    Attributes:
        layers: Row names, first layer of the model first.
        x: One coordinate per column, ascending.
        values: ``(len(layers), len(x))``; NaN where no seed has a value.
    """

    layers: tuple[str, ...]
    x: Array
    values: Array


def grid(variant: Variant, series: Series, *, columns: int | None = None) -> Grid | None:
    """A number of the records, by layer and coordinate.

    Args:
        variant: All its seeds count; where one has no value the others make the mean.
        series: Which number; each line has a ``layer``.
        columns: Hold each value until the layer's next line, and sample so many steps; NaN is
            held as well. ``None`` has one column per recorded coordinate.

    Returns:
        The grid, or ``None`` where there are no such lines.
    """
    layers = layers_of(variant, series.kind)
    recorded = {x for seed in variant.seeds for x, _ in series.pairs(seed)}
    if not layers or not (recorded or columns):
        return None
    places = np.array(sorted(recorded))
    if columns is not None:
        places = np.linspace(0.0, max(variant.last_step, 1), columns)
    total = np.zeros((len(layers), places.size))
    count = np.zeros_like(total)
    for seed in variant.seeds:
        values = np.array(
            [_along(seed, series, layer, places, hold=columns is not None) for layer in layers]
        )
        total += np.nan_to_num(values)
        count += np.isfinite(values)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return Grid(tuple(layers), places, mean)


def layers_of(variant: Variant, kind: str) -> list[str]:
    """The layers with lines of a kind, in the order in which they were recorded."""
    names: dict[str, None] = {}
    for seed in variant.seeds:
        names.update((text(row, "layer"), None) for row in seed.of_kind(kind))
    return list(names)


def _along(seed: SeedRun, series: Series, layer: str, places: Array, *, hold: bool) -> Array:
    rows = [row for row in seed.of_kind(series.kind) if text(row, "layer") == layer]
    if hold:
        return _hold([(number(row, series.x), series.value(row)) for row in rows], places, seed)
    by_place = dict(series.pairs(seed, layer))
    return np.array([by_place.get(float(place), math.nan) for place in places])
