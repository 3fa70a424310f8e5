"""From a configuration to one training of an image classifier."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import torch
from torch import nn

from orthotrain.data.splits import ImageData
from orthotrain.diagnostics.stability import BasisStability
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.branches.branching import Branching
from orthotrain.lab.experiments.branches.method import low_rank_method
from orthotrain.lab.experiments.branches.plan import PlanOf, plain
from orthotrain.lab.experiments.branches.start import OwnRate, Start, start_of
from orthotrain.lab.experiments.branches.steps import branch_steps, short_steps
from orthotrain.lab.experiments.branches.variants import BranchedVariant
from orthotrain.lab.experiments.classifier.config import ModelConfig
from orthotrain.lab.experiments.classifier.data import batches_of, load_data
from orthotrain.lab.experiments.classifier.optim import adamw
from orthotrain.lab.experiments.classifier.trainer import ClassifierTrainer, batch_loss
from orthotrain.lab.experiments.lowrank.config import ImageRun, LowRankConfig, LowRankVariant
from orthotrain.lab.experiments.lowrank.image_config import Found
from orthotrain.lab.experiments.lowrank.networks import (
    ImageShape,
    Network,
    build_network,
    entry_of,
    narrow_to,
    passes_of,
)
from orthotrain.lab.experiments.narrow import numbers_of
from orthotrain.lab.run.reproducibility import resolve_device, stream_seed
from orthotrain.lowrank import AdaptiveLowRank, read_rule
from orthotrain.methods import attach
from orthotrain.methods.protocol import Method


def build(config: ImageRun, variant: BranchedVariant, seed: int) -> ClassifierTrainer:
    """A training at its step 0, with its methods attached.

    Raises:
        ConfigError: Settings that do not fit each other, the data or the length of the run.
        CheckpointError: The finished dense training is needed and its checkpoint is damaged.
    """
    data = load_data(config.data, device=resolve_device(config.device))
    return build_on(data, config, variant, seed)


def build_on(
    data: ImageData,
    config: ImageRun,
    variant: BranchedVariant,
    seed: int,
    plan_of: PlanOf = plain,
) -> ClassifierTrainer:
    """The same, on these images, with what a rival changes."""
    shape, classes = data.image_shape, data.classes
    network = network_of(config, variant, image_shape=shape, classes=classes)

    def fresh() -> nn.Module:
        weights = torch.Generator().manual_seed(stream_seed(seed, "weights"))
        return build_network(network, image_shape=shape, classes=classes, generator=weights)

    # A branch goes on: what it sees is not what the dense model has seen first.
    branches = variant.branch is not None
    batches = batches_of(data, config.data, seed=stream_seed(seed, "branch") if branches else seed)
    start = start_of(
        variant, fresh=fresh, device=data.train.labels.device, next_batch=batches.next_batch,
        loss=partial(batch_loss, label_smoothing=config.optim.label_smoothing),
    )  # fmt: skip
    epoch = batches.batches_per_epoch
    total_steps = steps_of(config, variant, epoch=epoch, image_shape=shape, classes=classes)
    rate = own_rate(config, start, steps=total_steps, dense_steps=config.optim.epochs * epoch)
    plan = plan_of(start.model, total_steps)
    optimizer, scheduler = adamw(
        start.model, rate, total_steps=total_steps, kind=plan.optimizer, rhythm=plan.rhythm
    )
    methods: list[Method] = [
        BasisStability(every_steps=config.record.stability_every_epochs * epoch),
        *start.methods(),
        *plan.methods,
    ]
    cutting = method_of(variant, total_steps=total_steps)
    if cutting is not None:
        methods.append(cutting)
    return ClassifierTrainer(
        config=config,
        data=data,
        batches=batches,
        model=start.model,
        optimizer=optimizer,
        scheduler=scheduler,
        handle=attach(start.model, optimizer, *methods, total_steps=total_steps),
        network=plan.network(entry_of(network, image_shape=shape, classes=classes)),
        settings={
            "model": asdict(network),
            "steps": total_steps,
            "learning_rate": rate.lr,
            **variant.settings(),
        },
        length=total_steps,
        branching=Branching(
            start.model,
            "accuracy",
            start.teacher,
            config.branch.teacher_share,
            start.compute_before,
            cutting.schedule(total_steps) if variant.cut and cutting else None,
            start.branch,
            start.cut_compute,
        ),
    )


def network_of(
    config: ImageRun, variant: BranchedVariant, *, image_shape: ImageShape, classes: int
) -> Network:
    """The network that a variant trains."""
    full: Network = config.model
    if isinstance(full, Found):
        full = full.found()
    stored = variant.numbers if isinstance(variant, LowRankVariant) else None
    if variant.stored is not None:
        whole = partial(build_network, full, image_shape=image_shape, classes=classes)
        stored = round(variant.stored * numbers_of(whole))
    if stored is None:
        return full
    return narrow_to(full, stored=stored, image_shape=image_shape, classes=classes)


def own_rate(config: ImageRun, start: Start, *, steps: int, dense_steps: int) -> OwnRate:
    """Rate and schedule of a variant: that of dense training; a branch ends at 0."""
    optim = config.optim
    lr = start.peak_rate(optim.lr, steps=steps, dense_steps=dense_steps)
    if start.branch is not None:
        lr *= config.branch.rate_factor
        return OwnRate(lr, config.branch.warmup_fraction, optim.weight_decay)
    return OwnRate(lr, optim.warmup_fraction, optim.weight_decay, optim.min_lr)


def steps_of(
    config: ImageRun,
    variant: BranchedVariant,
    *,
    epoch: int,
    image_shape: ImageShape,
    classes: int,
) -> int:
    """Optimizer steps of a variant.

    Args:
        config: The run.
        variant: The variant.
        epoch: Optimizer steps per epoch.
        image_shape: ``(channels, size, size)``.
        classes: Outputs.
    """
    steps = config.optim.epochs * epoch
    if variant.branch is not None:
        return branch_steps(variant.branch, steps)
    if variant.as_branch is None or variant.stored is None:
        return steps
    narrow = network_of(config, variant, image_shape=image_shape, classes=classes)
    if not isinstance(config.model, ModelConfig) or not isinstance(narrow, ModelConfig):
        raise ConfigError(
            f"variant {variant.name}: operations are foreseen for vision transformers alone; leave "
            "variants out that train for as much compute as another"
        )
    passes = partial(
        passes_of, image_shape=image_shape, classes=classes, batch=config.data.batch_size
    )
    return short_steps(
        branch=branch_steps(variant.as_branch, steps),
        cut=passes(config.model, stored=variant.stored),
        dense=passes(config.model),
        narrow=passes(narrow),
        teacher=variant.teacher,
    )


def method_of(variant: BranchedVariant, *, total_steps: int) -> AdaptiveLowRank | None:
    """The method that cuts the network of a variant; None where nothing does."""
    if variant.branch is not None:
        return None  # cut before its first step
    if variant.cut is not None:
        return low_rank_method(variant.cut, total_steps=total_steps)
    if isinstance(variant, LowRankVariant) and variant.lowrank is not None:
        return adaptive_low_rank(variant.lowrank, total_steps=total_steps)
    return None


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
        dense_first=config.dense_first,
        only_if_cheaper=config.only_if_cheaper,
        optimizer_state=config.optimizer_state,
        spread=False,  # as the kept results were measured
    )
