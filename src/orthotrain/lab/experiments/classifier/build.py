"""From a configuration to the data, the optimizer and the methods of one training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from orthotrain.data.cifar10 import load_cifar10
from orthotrain.data.clothing import load_clothing
from orthotrain.data.digits import load_digits
from orthotrain.data.image_folder import load_image_folder
from orthotrain.data.splits import ImageData
from orthotrain.data.textures import load_textures
from orthotrain.diagnostics import BasisStability, ConditionMonitor
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.classifier.networks import LAYER_BEFORE, SPECTRAL_LAYER
from orthotrain.lab.experiments.lowrank.config import LowRankConfig, LowRankRun, LowRankVariant
from orthotrain.lab.experiments.spectral.config import SpectralRun, SpectralVariant
from orthotrain.lab.run.config import ClassifierRun, DataConfig, Job, OptimConfig, SgdConfig
from orthotrain.lab.run.schedule import step_decay_scheduler, warmup_cosine_scheduler
from orthotrain.lowrank import AdaptiveLowRank, read_rule
from orthotrain.methods import (
    Method,
    NearestOrthogonalGradient,
    OptimalLearningRate,
    OrthogonalPenalty,
    Retraction,
    SpectralNormalization,
)

# Images of the textures, the garments and of folders have no size of their own.
_IMAGE_SIZE = 128


def build_data(config: DataConfig, *, device: torch.device) -> ImageData:
    """Load the data set that ``config`` names onto ``device``."""
    size = config.image_size or _IMAGE_SIZE
    match config.name:
        case "digits":
            return load_digits(train_limit=config.train_limit, device=device)
        case "cifar10":
            return load_cifar10(data=config.dir, train_limit=config.train_limit, device=device)
        case "textures":
            return load_textures(
                data=config.dir, image_size=size, train_limit=config.train_limit, device=device
            )
        case "clothing":
            return load_clothing(
                data=config.dir, image_size=size, train_limit=config.train_limit, device=device
            )
        case "image-folder":
            return load_image_folder(
                config.dir, image_size=size, train_limit=config.train_limit, device=device
            )
        case _:
            assert_never(config.name)


def build_optimizer(model: nn.Module, config: OptimConfig | SgdConfig) -> Optimizer:
    """AdamW that decays matrices only, or SGD that decays everything, as published for each."""
    if isinstance(config, SgdConfig):
        return _sgd(model, config)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups: Iterable[dict[str, object]] = (
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    )
    return AdamW(groups, lr=config.lr)


def _sgd(model: nn.Module, config: SgdConfig) -> SGD:
    head = {id(p) for p in model.get_submodule("head").parameters()}
    # Decay would turn an orthogonal weight for no reason: its norm is fixed.
    reflections = {id(p) for name, p in model.named_parameters() if ".parametrizations." in name}
    parameters = list(model.parameters())
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if id(p) not in head | reflections]},
        {
            "params": [p for p in parameters if id(p) in head],
            "lr": config.lr * config.head_lr_factor,
        },
    ]
    if reflections:
        orthogonal = [p for p in parameters if id(p) in reflections]
        groups.append({"params": orthogonal, "weight_decay": 0.0})
    return SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def build_scheduler(
    optimizer: Optimizer, config: OptimConfig | SgdConfig, *, total_steps: int
) -> LambdaLR:
    """The schedule that goes with the optimizer; steps once per optimizer step."""
    if isinstance(config, SgdConfig):
        return step_decay_scheduler(
            optimizer,
            total_steps=total_steps,
            decay_at=config.decay_at,
            factor=config.decay_factor,
        )
    return warmup_cosine_scheduler(
        optimizer,
        total_steps=total_steps,
        warmup_steps=int(config.warmup_fraction * total_steps),
        final=config.min_lr / config.lr,
    )


def build_methods(
    job: Job, config: ClassifierRun, *, steps_per_epoch: int, total_steps: int
) -> list[Method]:
    """What is attached: the watcher of the family, and what the variant asks for."""
    if isinstance(config, SpectralRun) and isinstance(job.variant, SpectralVariant):
        return _spectral_methods(job.variant, config)
    if not isinstance(config, LowRankRun) or not isinstance(job.variant, LowRankVariant):
        raise ConfigError(
            f"build_methods: variant {job.variant.name} is none of a {config.family} run"
        )
    methods: list[Method] = [
        BasisStability(every_steps=config.record.stability_every_epochs * steps_per_epoch)
    ]
    if job.variant.lowrank is not None:
        methods.append(adaptive_low_rank(job.variant.lowrank, total_steps=total_steps))
    return methods


def _spectral_methods(variant: SpectralVariant, config: SpectralRun) -> list[Method]:
    """The published order: the penalty is part of the gradient that NOG sees, OLR comes last."""
    spectral, treatments = config.spectral, variant.treatments
    every = spectral.monitor_every_steps
    if not treatments:
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
    available: dict[str, Method] = {
        "ol": OrthogonalPenalty(weight, weight=spectral.penalty),
        "nog": NearestOrthogonalGradient(
            weight, scale=spectral.nog_scale, when=spectral.nog_when, record_every=every
        ),
        "olr": OptimalLearningRate(
            weight, target=spectral.olr_target, floor=spectral.olr_floor, record_every=every
        ),
        "sn": SpectralNormalization(weight),
        "fixed": Retraction(weight, onto="norm"),
    }
    chosen = [method for name, method in available.items() if name in treatments]
    layer = SPECTRAL_LAYER[spectral.layer]
    return [*chosen, ConditionMonitor(weight, every_steps=every, covariances=(layer,))]


def adaptive_low_rank(config: LowRankConfig, *, total_steps: int) -> AdaptiveLowRank:
    """Turn shares of the run into optimizer steps."""
    delay = config.delay_fraction
    return AdaptiveLowRank(
        delay_steps=delay if delay == "auto" else round(delay * total_steps),
        every_steps=max(1, round(config.every_fraction * total_steps)),
        rank=read_rule(config.rank),
        layer_fraction=config.layer_fraction,
        max_drop=config.max_drop,
        min_rank_fraction=config.min_rank_fraction,
        only_if_cheaper=config.only_if_cheaper,
        optimizer_state=config.optimizer_state,
    )
