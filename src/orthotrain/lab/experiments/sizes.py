"""Sizes of networks on the pages of low-rank experiments, in percent of the dense one."""

from __future__ import annotations

import math
from dataclasses import replace

from orthotrain.lab.report.load import Run
from orthotrain.lab.report.measures import result
from orthotrain.lab.report.rows import number
from orthotrain.lab.report.stats import Measure


def dense_size(run: Run) -> float:
    """Stored numbers of the dense network, 100 % everywhere on the page; NaN where unknown.

    The baseline's own count where it finished. Otherwise the largest count that any variant
    recorded for the dense form of its network: a narrow network's is smaller.
    """
    finished = run.baseline.finished if run.baseline is not None else ()
    known = [seed.final("stored") for seed in finished] or [
        count
        for variant in run.variants
        for seed in variant.seeds
        for count in (seed.final("dense"), *(number(r, "dense") for r in seed.of_kind("size")))
    ]
    return max((value for value in known if math.isfinite(value)), default=math.nan)


def sizes(run: Run) -> list[Measure]:
    """Trained, stored and folded numbers, in percent of the dense network."""
    return [
        _size(run, "trainable", "Trained"),
        _size(run, "stored", "Stored"),
        _size(run, "stored_folded", "Stored, folded"),
    ]


def _size(run: Run, key: str, title: str) -> Measure:
    count = result(key, title, scale=100.0 / dense_size(run), unit="% of dense", digits=1)
    return replace(
        count.named(f"{key}_percent_of_dense"),
        better="less",
        aside=lambda variant: _count(result(key, title).mean(variant)),
    )


def _count(value: float) -> str:
    """A count in three digits: ``842``, ``73.1 k``, ``1.24 M``."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"
