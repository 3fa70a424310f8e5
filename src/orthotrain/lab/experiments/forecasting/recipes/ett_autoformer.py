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
)
from orthotrain.lab.experiments.forecasting.tuning import forecast_search
from orthotrain.lab.experiments.forecasting.variants import REGULARISED, forecast_variants
from orthotrain.lab.run.config import Scale
from orthotrain.lab.run.experiment import Experiment

# What the search starts from; a regularised forecaster has these beside the rate.
_REGULARISED = {REGULARISED: {"optim.weight_decay": 0.1, "model.dropout": 0.2}}
_FULL = ForecastRun(seeds=(0, 1, 2), own=_REGULARISED)
# As in the authors' scripts: ten epochs of each file, and the delays that they mix.
_PUBLISHED = {"ettm2": (10_740, 1.0), "etth2": (2640, 3.0)}

# Sized for a minute and a half per dense training on one core: a narrow model, and every sixteenth
# window measured.
_CPU = replace(
    _FULL,
    data=SeriesConfig(batch_size=16, every=16),
    model=ForecasterConfig(width=64, heads=4),
    optim=ForecastOptim(steps=600, lr=1e-3),
    record=ForecastRecord(eval_every_steps=50, checkpoint_every_steps=150, eval_windows=256),
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

SEARCH = forecast_search(lr=(3e-4, 5e-2), seeds=(100,))


def _recipe(name: Literal["ettm2", "etth2"], title: str) -> Experiment:
    steps, factor = _PUBLISHED[name]
    full = replace(
        _FULL,
        model=replace(_FULL.model, factor=factor),
        optim=replace(_FULL.optim, steps=steps),
    )
    scales: dict[Scale, ForecastRun] = {"smoke": _SMOKE, "cpu": _CPU, "full": full}
    return Experiment(
        name=f"{name}-autoformer",
        title=f"Autoformer on {title}",
        config={s: replace(c, data=replace(c.data, name=name)) for s, c in scales.items()},
        variants=forecast_variants,
        build="orthotrain.lab.experiments.forecasting.build:build",
        page="orthotrain.lab.experiments.forecasting.page:PAGE",
        search="orthotrain.lab.experiments.forecasting.recipes.ett_autoformer:SEARCH",
    )


ETTM2 = _recipe("ettm2", "ETTm2, every 15 minutes")
ETTH2 = _recipe("etth2", "ETTh2, hourly")
