"""A fresh image classifier, and the narrowest that stores as much as another network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.branches.steps import Passes, squares_of
from orthotrain.lab.experiments.classifier.config import ModelConfig, ResNetConfig
from orthotrain.lab.experiments.lowrank.image_config import FoundResNet, FoundViT
from orthotrain.lab.experiments.narrow import narrowest
from orthotrain.lab.run.restore import network_entry, rebuilds
from orthotrain.models.mini_vit import MiniViT
from orthotrain.models.resnet import ResNet

ImageShape = tuple[int, int, int]
Network = ModelConfig | ResNetConfig
_KINDS: Final = {one.__name__: one for one in (ModelConfig, ResNetConfig, FoundViT, FoundResNet)}
# Memory lies channels last where widths are multiples of this; those of a network as wide as the
# second are searched in such steps.
_CHANNELS: Final = 8
_WIDE: Final = 32


def build_network(
    config: Network,
    *,
    image_shape: ImageShape,
    classes: int,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A fresh network for images ``(channels, size, size)``.

    Raises:
        ConfigError: Sizes that do not fit each other or the images.
        MissingPackageError: It is timm's, which is not installed.
    """
    if isinstance(config, FoundViT | FoundResNet) and config.found().source == "timm":
        from orthotrain.lab.experiments.lowrank.timm_networks import timm_network

        model = timm_network(config, image_shape=image_shape, classes=classes, generator=generator)
        return model if isinstance(config, FoundViT) else channels_last(model, width=config.width)
    if isinstance(config, ModelConfig):
        return build_vit(config, image_shape=image_shape, classes=classes, generator=generator)
    model = ResNet(
        depth=config.depth,
        width=config.width,
        stem_channels=config.stem_channels,
        classes=classes,
        channels=image_shape[0],
        stem=config.stem,
        last_stride=config.last_stride,
        generator=generator,
    )
    return channels_last(model, width=config.width)


def channels_last(model: nn.Module, *, width: int) -> nn.Module:
    """A residual network whose memory lies channels last, where its width allows that."""
    # Of other widths torch 2.13 may write past its memory, see spectral/networks.py.
    if width % _CHANNELS == 0:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


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
def network_from(
    *, kind: str, model: Mapping[str, Any], image_shape: Sequence[int], classes: int
) -> nn.Module:
    """The network of a checkpoint, with fresh weights."""
    channels, height, width = image_shape
    return build_network(
        _KINDS[kind](**model), image_shape=(channels, height, width), classes=classes
    )


def entry_of(config: Network, *, image_shape: ImageShape, classes: int) -> dict[str, Any]:
    """What a checkpoint says of its network."""
    settings = {"image_shape": list(image_shape), "classes": classes}
    return network_entry(
        network_from, {"kind": type(config).__name__, "model": asdict(config), **settings}
    )


def narrow_to(config: Network, *, stored: int, image_shape: ImageShape, classes: int) -> Network:
    """The narrowest network that stores at least ``stored`` numbers, never wider than given.

    Args:
        config: The full network.
        stored: Numbers the low-rank network ended with.
        image_shape: ``(channels, size, size)``.
        classes: Outputs.
    """
    build: Callable[[Network], nn.Module] = partial(
        build_network, image_shape=image_shape, classes=classes
    )
    if isinstance(config, ModelConfig):
        return narrowest(config, stored=stored, build=build, step=config.heads)
    step = _CHANNELS if config.width >= _WIDE else 1
    return narrowest(config, stored=stored, build=build, step=step)


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
