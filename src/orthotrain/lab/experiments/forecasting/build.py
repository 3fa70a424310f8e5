"""From a configuration to one training of a forecaster."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import torch

from orthotrain.data.ett import SeriesData, load_ett
from orthotrain.data.windows import WindowStream
from orthotrain.diagnostics.stability import BasisStability
from orthotrain.lab.experiments.branches.branching import Branching
from orthotrain.lab.experiments.branches.method import low_rank_method
from orthotrain.lab.experiments.branches.start import OwnRate
from orthotrain.lab.experiments.branches.variants import BranchedVariant
from orthotrain.lab.experiments.classifier.optim import adamw
from orthotrain.lab.experiments.forecasting.best import BestModel
from orthotrain.lab.experiments.forecasting.config import (
    ForecasterConfig,
    ForecastRun,
)
from orthotrain.lab.experiments.forecasting.networks import autoformer_from, build_autoformer
from orthotrain.lab.experiments.forecasting.trainer import ForecastTrainer
from orthotrain.lab.experiments.narrow import narrowest, numbers_of
from orthotrain.lab.run.reproducibility import resolve_device, stream_seed
from orthotrain.lab.run.restore import network_entry
from orthotrain.methods import attach
from orthotrain.methods.protocol import Method

# Measurements of the bases per training.
_STABILITY_PER_RUN = 20


def build(config: ForecastRun, variant: BranchedVariant, seed: int) -> ForecastTrainer:
    """A training at its step 0, with its methods attached.

    Raises:
        ConfigError: Settings that do not fit each other or the length of the run.
        DataError: The series are missing, damaged or too short for the windows.
    """
    data = load_ett(config.data.name, data=config.data.dir, read=config.model.read)
    return build_on(data, config, variant, seed)


def build_on(
    data: SeriesData, config: ForecastRun, variant: BranchedVariant, seed: int
) -> ForecastTrainer:
    """The same, on these series."""
    device, optim = resolve_device(config.device), config.optim
    data = data.to(device)
    series = len(data.names)
    network = network_of(config, variant, series=series)
    read, ahead = network.read, network.ahead
    # A part that is too short is told before the first step, not at the first look.
    data.validation.places(read=read, ahead=ahead)

    weights = torch.Generator().manual_seed(stream_seed(seed, "weights"))
    batches = WindowStream(
        data.train.places(read=read, ahead=ahead),
        partial(data.train.windows, read=read, ahead=ahead),
        batch_size=config.data.batch_size,
        seed=stream_seed(seed, "batches"),
    )
    model = build_autoformer(network, series=series, generator=weights).to(device)
    optimizer, scheduler = adamw(
        model,
        OwnRate(optim.lr, optim.warmup_fraction, optim.weight_decay),
        total_steps=optim.steps,
    )
    methods: list[Method] = [BasisStability(every_steps=max(1, optim.steps // _STABILITY_PER_RUN))]
    cuts = None
    if variant.cut is not None:
        cutting = low_rank_method(variant.cut, total_steps=optim.steps)
        methods.append(cutting)
        cuts = cutting.schedule(optim.steps)
    return ForecastTrainer(
        config=config,
        data=data,
        dropout_seed=stream_seed(seed, "dropout"),
        best=BestModel(model),
        batches=batches,
        batch_size=config.data.batch_size,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        handle=attach(model, optimizer, *methods, total_steps=optim.steps),
        network=network_entry(autoformer_from, {"model": asdict(network), "series": series}),
        total_steps=optim.steps,
        branching=Branching(model, "mse", cuts=cuts),
        clip_norm=optim.clip_norm,
        record=config.record,
        settings={
            "model": asdict(network),
            "steps": optim.steps,
            "learning_rate": optim.lr,
            "weight_decay": optim.weight_decay,
            **variant.settings(),
        },
    )


def network_of(config: ForecastRun, variant: BranchedVariant, *, series: int) -> ForecasterConfig:
    """The network that a variant trains."""
    if variant.stored is None:
        return config.model
    made = partial(build_autoformer, series=series)
    stored = round(variant.stored * numbers_of(partial(made, config.model)))
    return narrowest(config.model, stored=stored, build=made, step=config.model.heads)
