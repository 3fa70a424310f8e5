"""A fresh Autoformer by configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from orthotrain.lab.experiments.forecasting.config import ForecasterConfig
from orthotrain.lab.run.restore import rebuilds
from orthotrain.models.autoformer import Autoformer

# Minute, hour, day of week, of month and of year.
_CALENDAR = 5


def build_autoformer(
    config: ForecasterConfig, *, series: int, generator: torch.Generator | None = None
) -> Autoformer:
    """A fresh forecaster of so many series.

    Raises:
        ConfigError: Sizes that do not fit each other.
    """
    return Autoformer(series=series, calendar=_CALENDAR, generator=generator, **asdict(config))


@rebuilds
def autoformer_from(*, model: Mapping[str, Any], series: int) -> Autoformer:
    """The Autoformer of a checkpoint, with fresh weights."""
    return build_autoformer(ForecasterConfig(**model), series=series)
