"""From a configuration to one training of a mini vision transformer."""

from __future__ import annotations

from dataclasses import asdict

import torch

from orthotrain.data.splits import ImageData
from orthotrain.diagnostics.stability import BasisStability
from orthotrain.lab.experiments.classifier.data import batches_of, load_data
from orthotrain.lab.experiments.classifier.optim import adamw
from orthotrain.lab.experiments.classifier.trainer import ClassifierTrainer
from orthotrain.lab.experiments.lowrank.config import LowRankConfig, LowRankRun, LowRankVariant
from orthotrain.lab.experiments.lowrank.networks import build_vit, narrow_to, vit_from
from orthotrain.lab.run.reproducibility import resolve_device, stream_seed
from orthotrain.lab.run.restore import network_entry
from orthotrain.lowrank import AdaptiveLowRank, read_rule
from orthotrain.methods import attach
from orthotrain.methods.protocol import Method


def build(config: LowRankRun, variant: LowRankVariant, seed: int) -> ClassifierTrainer:
    """A training at its step 0, with its methods attached.

    Raises:
        ConfigError: Settings that do not fit each other, the data or the length of the run.
    """
    data = load_data(config.data, device=resolve_device(config.device))
    return build_on(data, config, variant, seed)


def build_on(
    data: ImageData, config: LowRankRun, variant: LowRankVariant, seed: int
) -> ClassifierTrainer:
    """The same, on these images."""
    shape, classes = data.image_shape, data.classes
    network = config.model
    if variant.stored is not None:
        network = narrow_to(network, stored=variant.stored, image_shape=shape, classes=classes)
    weights = torch.Generator().manual_seed(stream_seed(seed, "weights"))
    model = build_vit(network, image_shape=shape, classes=classes, generator=weights)
    model.to(data.train.labels.device)
    batches = batches_of(data, config.data, seed=seed)
    epoch = batches.batches_per_epoch
    total_steps = config.optim.epochs * epoch
    optimizer, scheduler = adamw(model, config.optim, total_steps=total_steps)
    methods: list[Method] = [
        BasisStability(every_steps=config.record.stability_every_epochs * epoch)
    ]
    if variant.lowrank is not None:
        methods.append(adaptive_low_rank(variant.lowrank, total_steps=total_steps))
    return ClassifierTrainer(
        config=config,
        data=data,
        batches=batches,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        handle=attach(model, optimizer, *methods, total_steps=total_steps),
        network=network_entry(
            vit_from, {"model": asdict(network), "image_shape": list(shape), "classes": classes}
        ),
        settings={"model": asdict(network), **variant.settings()},
    )


def adaptive_low_rank(config: LowRankConfig, *, total_steps: int) -> AdaptiveLowRank:
    """Turn shares of the run into optimizer steps."""
    delay = config.delay_fraction
    return AdaptiveLowRank(
        delay_steps=delay if delay == "auto" else round(delay * total_steps),
        every_steps=max(1, round(config.every_fraction * total_steps)),
        rank=read_rule(config.rank),
        importance=config.importance,
        bases=config.bases,
        core_step=config.core_step,
        layer_fraction=config.layer_fraction,
        max_drop=config.max_drop,
        min_rank_fraction=config.min_rank_fraction,
        only_if_cheaper=config.only_if_cheaper,
        optimizer_state=config.optimizer_state,
    )
