"""From a configuration to the objects of one training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

import torch
from torch import nn
from torch.optim import AdamW

from orthotrain.data.cifar10 import load_cifar10
from orthotrain.data.digits import load_digits
from orthotrain.data.splits import ImageData
from orthotrain.diagnostics.stability import BasisStability
from orthotrain.errors import ConfigError
from orthotrain.lowrank.method import AdaptiveLowRank
from orthotrain.methods.protocol import Method
from orthotrain.models.mini_vit import MiniViT
from orthotrain.training.config import (
    DataConfig,
    LowRankConfig,
    ModelConfig,
    OptimConfig,
    RecordConfig,
)


def build_data(config: DataConfig, *, device: torch.device) -> ImageData:
    """Load the data set that ``config`` names onto ``device``."""
    match config.name:
        case "digits":
            return load_digits(train_limit=config.train_limit, device=device)
        case "cifar10":
            return load_cifar10(data=config.dir, train_limit=config.train_limit, device=device)
        case _:
            assert_never(config.name)


def build_model(
    config: ModelConfig,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    generator: torch.Generator | None = None,
) -> MiniViT:
    """A fresh network for images ``(channels, size, size)``.

    Raises:
        ConfigError: Sizes that do not fit each other, or images that are not square.
    """
    channels, height, width = image_shape
    if height != width:
        raise ConfigError(f"build_model: images are {height} x {width}, need square ones")
    return MiniViT(
        image_size=height,
        channels=channels,
        classes=classes,
        patch_size=config.patch_size,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        generator=generator,
    )


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW that decays matrices only, as is usual for transformers."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups: Iterable[dict[str, object]] = (
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    )
    return AdamW(groups, lr=config.lr)


def build_methods(
    lowrank: LowRankConfig | None,
    record: RecordConfig,
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> list[Method]:
    """What is attached: the record of the bases, and low-rank training where asked for."""
    methods: list[Method] = [
        BasisStability(every_steps=record.stability_every_epochs * steps_per_epoch)
    ]
    if lowrank is not None:
        methods.append(adaptive_low_rank(lowrank, total_steps=total_steps))
    return methods


def adaptive_low_rank(config: LowRankConfig, *, total_steps: int) -> AdaptiveLowRank:
    """Turn shares of the run into optimizer steps."""
    delay = config.delay_fraction
    return AdaptiveLowRank(
        delay_steps=delay if delay == "auto" else round(delay * total_steps),
        every_steps=max(1, round(config.every_fraction * total_steps)),
        rank_rtol=config.rank_rtol,
        energy=config.energy,
        stored_budget=config.stored_budget,
        layer_fraction=config.layer_fraction,
        max_drop=config.max_drop,
        min_rank_fraction=config.min_rank_fraction,
        only_if_cheaper=config.only_if_cheaper,
        optimizer_state=config.optimizer_state,
    )


def narrow_to(
    config: ModelConfig, *, stored: int, image_shape: tuple[int, int, int], classes: int
) -> ModelConfig:
    """The narrowest network that stores at least ``stored`` numbers, never wider than given.

    The rival gets the benefit of the doubt: its width is rounded up.

    Args:
        config: The full network.
        stored: Numbers the low-rank network ended with.
        image_shape: ``(channels, size, size)``.
        classes: Outputs.
    """
    for width in range(config.heads, config.width, config.heads):
        narrow = replace(config, width=width)
        with torch.device("meta"):
            model = build_model(narrow, image_shape=image_shape, classes=classes)
        if sum(p.numel() for p in model.parameters()) >= stored:
            return narrow
    return config
