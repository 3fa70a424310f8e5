"""From a configuration to one training of a residual network with a spectral layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from orthotrain.data.splits import ImageData
from orthotrain.diagnostics.conditioning import ConditionMonitor
from orthotrain.lab.experiments.classifier.data import batches_of, load_data
from orthotrain.lab.experiments.classifier.optim import sgd
from orthotrain.lab.experiments.classifier.trainer import ClassifierTrainer
from orthotrain.lab.experiments.spectral.config import SpectralRun
from orthotrain.lab.experiments.spectral.measure import spectral_fields
from orthotrain.lab.experiments.spectral.networks import (
    LAYER_BEFORE,
    SPECTRAL_LAYER,
    build_resnet,
    resnet_from,
)
from orthotrain.lab.experiments.treatments import Settings, TreatedVariant, methods_of
from orthotrain.lab.run.reproducibility import resolve_device, stream_seed
from orthotrain.lab.run.restore import network_entry
from orthotrain.methods import attach
from orthotrain.methods.protocol import Method


def build(config: SpectralRun, variant: TreatedVariant, seed: int) -> ClassifierTrainer:
    """A training at its step 0, with its methods attached.

    Raises:
        ConfigError: Settings that do not fit each other or the data.
    """
    data = load_data(config.data, device=resolve_device(config.device))
    return build_on(data, config, variant, seed)


def build_on(
    data: ImageData, config: SpectralRun, variant: TreatedVariant, seed: int
) -> ClassifierTrainer:
    """The same, on these images."""
    weights = torch.Generator().manual_seed(stream_seed(seed, "weights"))
    shape: dict[str, Any] = {
        "treatments": list(variant.treatments),
        "channels": data.image_shape[0],
        "classes": data.classes,
    }
    model = build_resnet(config.model, spectral=config.spectral, generator=weights, **shape)
    model.to(data.train.labels.device)
    batches = batches_of(data, config.data, seed=seed)
    total_steps = config.optim.epochs * batches.batches_per_epoch
    optimizer, scheduler = sgd(model, config.optim, total_steps=total_steps)
    handle = attach(model, optimizer, *build_methods(variant, config), total_steps=total_steps)

    def more_fields(sizes: Mapping[str, Any], steps_here: int) -> dict[str, Any]:
        return spectral_fields(
            model,
            config.spectral,
            handle=handle,
            steps_here=steps_here,
            step_ms=sizes["step_ms_final"],
            batch_size=config.data.batch_size,
        )

    return ClassifierTrainer(
        config=config,
        data=data,
        batches=batches,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        handle=handle,
        network=network_entry(
            resnet_from,
            {"model": asdict(config.model), "spectral": asdict(config.spectral), **shape},
        ),
        settings={"model": asdict(config.model), **variant.settings()},
        more_fields=more_fields,
    )


def build_methods(variant: TreatedVariant, config: SpectralRun) -> list[Method]:
    """The treatments of the variant, and the watcher of the covariance."""
    spectral = config.spectral
    every = spectral.monitor_every_steps
    if not variant.treatments:
        # Batch norm has a covariance in front of it, too; the mean over positions has none, and
        # a weight stands in for it.
        batch_norm = spectral.layer == "whitening"
        return [
            ConditionMonitor(
                "stem" if batch_norm else "head",
                every_steps=every,
                covariances=("norm",) if batch_norm else (),
            )
        ]
    weight = LAYER_BEFORE[spectral.layer]
    settings = Settings(
        penalty=spectral.penalty,
        nog_scale=spectral.nog_scale,
        nog_when=spectral.nog_when,
        olr_target=spectral.olr_target,
        olr_floor=spectral.olr_floor,
        record_every=every,
    )
    layer = SPECTRAL_LAYER[spectral.layer]
    return [
        *methods_of(variant.treatments, weight=weight, settings=settings),
        ConditionMonitor(weight, every_steps=every, covariances=(layer,)),
    ]
