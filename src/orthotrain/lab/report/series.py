"""From the rows of several seeds to one curve or one heat map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orthotrain.lab.report.load import SeedRun, Variant
from orthotrain.lab.report.rows import Row, number, text

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A quantity over training: mean over seeds, with the lowest and the highest seed."""

    x: Array
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Grid:
    """A quantity per layer over training, mean over seeds.

    Attributes:
        layers: Row names, first layer of the model first.
        x: One coordinate a column, ascending.
        values: ``(len(layers), len(x))``; NaN where no seed has a value.
    """

    layers: tuple[str, ...]
    x: Array
    values: Array


def last_step(variants: Sequence[Variant]) -> int:
    """The last step with a record in any of the variants."""
    return max((seed.last_step for variant in variants for seed in variant.seeds), default=0)


def curve(
    variant: Variant, kind: str, key: str, *, bins: int | None = None, split: str | None = None
) -> Curve | None:
    """One field of the rows of a kind, as a curve over optimizer steps.

    Args:
        variant: All its seeds count, finished or not, as far as their records go.
        kind: Which rows.
        key: Which field; rows without a finite value are left out.
        bins: Cut the steps into this many bins and take each seed's median in each, which
            leaves a readable line of a noisy record. ``None`` keeps every recorded step.
        split: Only rows of this data split.

    Returns:
        The curve, or ``None`` where no row has a value.
    """
    width = last_step([variant]) / bins if bins else 0.0
    by_place: dict[float, list[tuple[float, float]]] = {}
    for seed in variant.seeds:
        gathered: dict[float, list[tuple[float, float]]] = {}
        for row in seed.rows[kind]:
            value, step = number(row, key), number(row, "step")
            if math.isnan(value) or (split is not None and row.get("split") != split):
                continue
            gathered.setdefault(step // width if width else step, []).append((step, value))
        for place, pairs in gathered.items():
            middle = np.median(np.asarray(pairs), axis=0)
            by_place.setdefault(place, []).append((float(middle[0]), float(middle[1])))
    if not by_place:
        return None
    ordered = [np.asarray(by_place[place]) for place in sorted(by_place)]
    return Curve(
        x=np.array([pairs[:, 0].mean() for pairs in ordered]),
        mean=np.array([pairs[:, 1].mean() for pairs in ordered]),
        low=np.array([pairs[:, 1].min() for pairs in ordered]),
        high=np.array([pairs[:, 1].max() for pairs in ordered]),
    )


def held_curve(variant: Variant, keys: Sequence[str]) -> Curve | None:
    """A sum of fields of the ``size`` rows, which are written only where something changed.

    From one record to the next, and to its last step, each seed keeps its value, so that seeds
    whose changes fall on different steps have a mean; past its end a seed does not count.

    Args:
        variant: All its seeds count as far as their records go.
        keys: Fields to add up; a row that lacks one of them is left out.

    Returns:
        The curve, or ``None`` where no row has all fields.
    """
    changes = [
        [(number(row, "step"), sum(number(row, key) for key in keys)) for row in seed.rows["size"]]
        for seed in variant.seeds
    ]
    known = [[pair for pair in pairs if math.isfinite(pair[1])] for pairs in changes]
    if not any(known):
        return None
    ends = {float(s.last_step) for s, pairs in zip(variant.seeds, known, strict=True) if pairs}
    steps = np.array(sorted(ends.union(step for pairs in known for step, _ in pairs)))
    held = np.full((len(known), steps.size), np.nan)
    for row, (seed, pairs) in enumerate(zip(variant.seeds, known, strict=True)):
        for step, value in pairs:
            held[row, steps >= step] = value
        held[row, steps > seed.last_step] = np.nan
    # Every step of the grid is a record or the end of some seed: no column is without a value.
    return Curve(steps, *(f(held, axis=0) for f in (np.nanmean, np.nanmin, np.nanmax)))


def stability_grid(variant: Variant, key: str) -> Grid | None:
    """``stability`` or ``mixing`` as layer x epoch; ``None`` where nothing was recorded."""
    cells: dict[tuple[str, float], list[float]] = {}
    layers: dict[str, None] = {}
    for seed in variant.seeds:
        for row in seed.rows["stability"]:
            value, epoch = number(row, key), number(row, "epoch")
            if math.isfinite(value) and math.isfinite(epoch):
                layers[text(row, "layer")] = None
                cells.setdefault((text(row, "layer"), epoch), []).append(value)
    if not cells:
        return None
    epochs = sorted({epoch for _, epoch in cells})
    values = [
        [float(np.mean(cells.get((layer, epoch), [math.nan]))) for epoch in epochs]
        for layer in layers
    ]
    return Grid(tuple(layers), np.array(epochs), np.array(values))


def stability_curve(variant: Variant, key: str = "stability") -> Curve | None:
    """Mean over layers at each epoch, its spread over seeds; ``x`` is the epoch."""
    by_epoch: dict[float, list[float]] = {}
    for seed in variant.seeds:
        mine: dict[float, list[float]] = {}
        for row in seed.rows["stability"]:
            value = number(row, key)
            if math.isfinite(value):
                mine.setdefault(number(row, "epoch"), []).append(value)
        for epoch, values in mine.items():
            by_epoch.setdefault(epoch, []).append(float(np.mean(values)))
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)

    def along(reduce: Callable[[list[float]], float]) -> Array:
        return np.array([float(reduce(by_epoch[epoch])) for epoch in epochs])

    return Curve(
        np.array(epochs), along(lambda values: float(np.mean(values))), along(min), along(max)
    )


def rank_grid(variant: Variant, *, columns: int = 160) -> Grid | None:
    """Rank over full rank, as layer x step, between the recorded changes held constant.

    Args:
        variant: Seeds that still hold a layer dense do not count in that layer's mean.
        columns: How many steps to sample.

    Returns:
        NaN where every seed holds the layer dense; ``None`` where no rank was recorded.
    """
    layers: dict[str, None] = {}
    for seed in variant.seeds:
        layers.update((text(row, "layer"), None) for row in seed.rows["rank"])
    if not layers:
        return None
    steps = np.linspace(0.0, max(last_step([variant]), 1), columns)
    total = np.zeros((len(layers), columns))
    count = np.zeros((len(layers), columns))
    for seed in variant.seeds:
        held = np.array([_held(seed, layer, steps) for layer in layers])
        total += np.nan_to_num(held)
        count += np.isfinite(held)
    values = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return Grid(tuple(layers), steps, values)


def _held(seed: SeedRun, layer: str, steps: Array) -> Array:
    """The relative rank of one layer at each of ``steps``; NaN while dense or past the record."""
    held = np.full(steps.shape, np.nan)
    for row in seed.rows["rank"]:
        if text(row, "layer") == layer:
            held[steps >= number(row, "step")] = _relative_rank(row)
    held[steps > seed.last_step] = np.nan
    return held


def _relative_rank(row: Row) -> float:
    if row.get("form") == "dense":
        return math.nan
    return number(row, "rank") / number(row, "full_rank")
