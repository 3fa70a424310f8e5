"""A forecaster so small that a test can train it, kill it and train it again."""

from dataclasses import replace

import torch

from orthotrain.data.ett import SeriesData, Stretch
from orthotrain.lab.experiments.catalog import recipe_config
from orthotrain.lab.experiments.forecasting.build import build_on
from orthotrain.lab.experiments.forecasting.config import ForecastRecord
from orthotrain.lab.experiments.forecasting.variants import forecast_variants
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.space import own_config

_SMOKE = recipe_config("ettm2-autoformer", "smoke")
CONFIG = replace(
    _SMOKE,
    data=replace(_SMOKE.data, batch_size=4, every=3),
    optim=replace(_SMOKE.optim, steps=30),
    record=ForecastRecord(
        log_every_steps=1, eval_every_steps=6, checkpoint_every_steps=4, eval_windows=8
    ),
)


class CountedTest:
    """The test part; counts how often it is read."""

    def __init__(self):
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return stretch(80, seed=2)


def stretch(time, *, seed):
    """Two waves of a day and some noise."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(time) / 12 * 2 * torch.pi
    waves = torch.stack((t.sin(), (2 * t).cos()), dim=1)
    noise = 0.1 * torch.randn(time, 2, generator=generator)
    return Stretch(waves + noise, torch.rand(time, 5, generator=generator) - 0.5)


def tiny_series():
    train, validation = stretch(300, seed=0), stretch(80, seed=1)
    return SeriesData(("A", "OT"), train, validation, CountedTest(), "cd" * 32)


def variant_of(name, config=CONFIG):
    return next(one for one in forecast_variants(config) if one.name == name)


def trainer_of(name="dense", *, config=CONFIG, data=None):
    own = own_config(config, name)
    return build_on(data or tiny_series(), own, variant_of(name, own), 0)


def build_tiny(config, variant, seed):
    """What jobs are given in place of the real series."""
    return build_on(tiny_series(), config, variant, seed)


def train_here(folder, *, name="dense", config=CONFIG, data=None, **options):
    return train(
        trainer_of(name, config=config, data=data),
        variant=variant_of(name, config), seed=0, folder=SeedFolder(folder), **options,
    )  # fmt: skip
