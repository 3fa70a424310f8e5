"""A fresh mini vision transformer, and the narrowest that stores as much as another network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.branches.steps import Passes, squares_of
from orthotrain.lab.experiments.classifier.config import ModelConfig
from orthotrain.lab.experiments.narrow import narrowest
from orthotrain.lab.run.restore import rebuilds
from orthotrain.models.mini_vit import MiniViT

ImageShape = tuple[int, int, int]


def build_vit(
    config: ModelConfig,
    *,
    image_shape: ImageShape,
    classes: int,
    generator: torch.Generator | None = None,
) -> MiniViT:
    """A fresh vision transformer for images ``(channels, size, size)``.

    Raises:
        ConfigError: Sizes that do not fit each other, or images that are not square.
    """
    channels, height, width = image_shape
    if height != width:
        raise ConfigError(f"build_vit: images are {height} x {width}, need square ones")
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


@rebuilds
def vit_from(*, model: Mapping[str, Any], image_shape: Sequence[int], classes: int) -> MiniViT:
    """The transformer of a checkpoint, with fresh weights."""
    channels, height, width = image_shape
    return build_vit(ModelConfig(**model), image_shape=(channels, height, width), classes=classes)


def narrow_to(
    config: ModelConfig, *, stored: int, image_shape: ImageShape, classes: int
) -> ModelConfig:
    """The narrowest transformer that stores at least ``stored`` numbers, never wider than given.

    Args:
        config: The full network.
        stored: Numbers the low-rank network ended with.
        image_shape: ``(channels, size, size)``.
        classes: Outputs.
    """
    return narrowest(
        config,
        stored=stored,
        build=lambda narrow: build_vit(narrow, image_shape=image_shape, classes=classes),
    )


def passes_of(
    config: ModelConfig,
    *,
    image_shape: ImageShape,
    classes: int,
    batch: int,
    stored: float = 1.0,
) -> Passes:
    """What the passes of a transformer over a batch of images compute.

    Args:
        config: Network.
        image_shape: ``(channels, size, size)``.
        classes: Outputs.
        batch: Images.
        stored: Share of all numbers that is stored after a cut.
    """
    with torch.device("meta"):
        model = build_vit(config, image_shape=image_shape, classes=classes)
    tokens = model.position.shape[1]
    everything = sum(p.numel() for p in model.parameters())
    # Matrices are multiplied with every patch, but the head with every image alone.
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    head = model.head.weight.numel()
    multiplied = matrices - head + head / tokens - (1 - stored) * everything
    return Passes(
        batch * tokens, multiplied, tokens * config.width * config.depth, squares_of(model)
    )
