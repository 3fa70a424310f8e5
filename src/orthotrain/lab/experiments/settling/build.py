"""From a configuration to one training, or one random walk."""

from __future__ import annotations

from dataclasses import replace

import torch

from orthotrain.data.splits import ImageData
from orthotrain.diagnostics.stability import BasisStability
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.classifier.data import batches_of, load_data
from orthotrain.lab.experiments.classifier.optim import adamw
from orthotrain.lab.experiments.classifier.trainer import ClassifierTrainer
from orthotrain.lab.experiments.lowrank.networks import build_vit, entry_of
from orthotrain.lab.experiments.settling.config import SettlingRun, SettlingVariant
from orthotrain.lab.experiments.settling.walk import RandomWalk, StepNorms, norms_of
from orthotrain.lab.run.reproducibility import resolve_device, stream_seed
from orthotrain.methods import attach
from orthotrain.methods.protocol import Method


def build(config: SettlingRun, variant: SettlingVariant, seed: int) -> ClassifierTrainer:
    """A training at its step 0, with its methods attached.

    Raises:
        ConfigError: Settings that do not fit each other or the data; a walk without its training.
    """
    data = load_data(config.data, device=resolve_device(config.device))
    return build_on(data, config, variant, seed)


def build_on(
    data: ImageData, config: SettlingRun, variant: SettlingVariant, seed: int
) -> ClassifierTrainer:
    """The same, on these images."""
    shape, classes = data.image_shape, data.classes
    weights = torch.Generator().manual_seed(stream_seed(seed, "weights"))
    model = build_vit(config.model, image_shape=shape, classes=classes, generator=weights)
    model = model.to(data.train.labels.device)
    batches = batches_of(data, config.data, seed=seed)
    epoch = batches.batches_per_epoch
    total_steps = config.optim.epochs * epoch
    optim = config.optim if variant.falls else replace(config.optim, min_lr=config.optim.lr)
    optimizer, scheduler = adamw(model, optim, total_steps=total_steps)
    return ClassifierTrainer(
        config=config,
        data=data,
        batches=batches,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        handle=attach(
            model, optimizer,
            BasisStability(every_steps=config.record.stability_every_epochs * epoch),
            _step_method(variant, seed),
            total_steps=total_steps,
        ),
        network=entry_of(config.model, image_shape=shape, classes=classes),
        settings={"steps": total_steps, "learning_rate": optim.lr, **variant.settings()},
    )  # fmt: skip


def _step_method(variant: SettlingVariant, seed: int) -> Method:
    if not variant.walks:
        return StepNorms()
    if variant.training is None:
        raise ConfigError(
            f"variant {variant.name} has the step sizes of {variant.needs}; train it in one run "
            "with that, or give its folder to with_trainings"
        )
    return RandomWalk(norms_of(variant.training), stream_seed(seed, "walk"))
