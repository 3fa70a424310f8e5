"""Autoformer on the temperatures of electricity transformers; ``full`` has the published sizes.

The published training halves its learning rate after each of up to ten epochs and stops early.
Here the rate falls by a cosine over as many steps, and the best model is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from orthotrain.lab.experiments.forecasting.config import (
    ForecasterConfig,
    ForecastOptim,
    ForecastRecord,
    ForecastRun,
    SeriesConfig,
    forecast_variants,
)
from orthotrain.lab.run.config import Scale
from orthotrain.lab.run.experiment import Experiment

_FULL = ForecastRun(seeds=(0, 1, 2))

# Minutes per training on one core: a narrow model, every eighth window measured.
_CPU = replace(
    _FULL,
    data=SeriesConfig(every=8),
    model=ForecasterConfig(width=64, heads=4),
    optim=ForecastOptim(steps=1500, lr=1e-3),
    record=ForecastRecord(eval_every_steps=100),
    device="cpu",
)

_SMOKE = replace(
    _CPU,
    data=SeriesConfig(batch_size=8, every=64),
    model=ForecasterConfig(read=24, known=12, ahead=12, width=16, heads=2, window=5),
    optim=ForecastOptim(steps=60, lr=3e-3),
    record=ForecastRecord(
        log_every_steps=5, eval_every_steps=10, checkpoint_every_steps=20, eval_windows=32
    ),
    seeds=(0,),
)


def _recipe(name: Literal["ettm2", "etth2"], title: str) -> Experiment:
    scales: dict[Scale, ForecastRun] = {"smoke": _SMOKE, "cpu": _CPU, "full": _FULL}
    return Experiment(
        name=f"{name}-autoformer",
        title=f"Autoformer on {title}",
        config={s: replace(c, data=replace(c.data, name=name)) for s, c in scales.items()},
        variants=forecast_variants,
        build="orthotrain.lab.experiments.forecasting.build:build",
        page="orthotrain.lab.experiments.forecasting.page:PAGE",
    )


ETTM2 = _recipe("ettm2", "ETTm2, every 15 minutes")
ETTH2 = _recipe("etth2", "ETTh2, hourly")
