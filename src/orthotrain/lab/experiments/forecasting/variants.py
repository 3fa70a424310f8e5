"""The ways to train a forecaster: dense, regularised, narrow, and low-rank in two ways.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.branches.variants import (
    PUBLISHED,
    BranchedVariant,
    dense,
    half,
    narrow,
)
from orthotrain.lab.experiments.forecasting.config import ForecastRun

#: The published rule drops singular values below this share of the largest: weak to strong.
STRENGTHS: Final = (0.1, 0.2, 0.35, 0.5)
REGULARISED: Final = "dense-regularised"
#: Percent of the dense network's numbers that trained factors and the narrow network store.
HALF: Final = 50


def oialr(place: int) -> BranchedVariant:
    """The published method at one of the strengths, the weakest at place 1."""
    strength = STRENGTHS[place - 1]
    return BranchedVariant(
        f"oialr-{place}",
        f"OIALR, threshold {strength:g}",
        f"the published rule at {strength:g}: singular values below this share of the largest "
        "are dropped",
        cut=replace(PUBLISHED, rank_rtol=strength),
    )


def forecast_variants(config: ForecastRun) -> tuple[BranchedVariant, ...]:
    """Dense, regularised, narrow; the published method at each strength; trained factors."""
    return (
        dense(),
        BranchedVariant(
            REGULARISED,
            "dense, regularised",
            "the same network with weight decay and dropout of its own",
        ),
        narrow(HALF),
        *(oialr(place) for place in range(1, len(STRENGTHS) + 1)),
        half(HALF),
    )
