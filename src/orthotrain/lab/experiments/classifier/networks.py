"""From a configuration to a fresh network, and back from what a checkpoint says about one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final, assert_never

import torch
from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.spectral.config import (
    SpectralConfig,
    SpectralRun,
    SpectralVariant,
    Treatment,
)
from orthotrain.lab.run.config import ClassifierRun, Job, ModelConfig, NetworkConfig, ResNetConfig
from orthotrain.layers import (
    GlobalCovariancePool,
    OrthogonalConv2d,
    insert_whitening,
    orthogonal_weight,
)
from orthotrain.models.mini_vit import MiniViT
from orthotrain.models.resnet import ResNet, feature_channels

ImageShape = tuple[int, int, int]

# The spectral layer, and the layer before it, whose weight the treatments act on.
SPECTRAL_LAYER: Final = {"whitening": "norm", "pooling": "pool"}
# Of the skew kernel of an orthogonal stem. The published bound leaves out the root of the kernel's
# area, for 3x3 a factor of three, with which five terms are orthogonal to .21 still; a larger
# kernel gets the norm itself.
_ORTHOGONAL_NORM: Final = 0.7
_PUBLISHED_NORM: Final = 3 * _ORTHOGONAL_NORM
LAYER_BEFORE: Final = {"whitening": "stem", "pooling": "pool.reduce.0"}


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


def build_resnet(
    config: ResNetConfig,
    *,
    spectral: SpectralConfig,
    treatments: tuple[Treatment, ...],
    channels: int,
    classes: int,
    generator: torch.Generator | None = None,
) -> ResNet:
    """A fresh residual network with its spectral layer, if it has one.

    All variants of one seed draw the same weights: the plain network is drawn first, and what a
    treatment exchanges is drawn after it.

    Raises:
        ConfigError: Sizes that do not fit each other.
    """
    root: dict[str, Any] = {"ridge": spectral.ridge}
    if "ns" in treatments:
        root |= {
            "method": "newton_schulz",
            "gradient": "newton_schulz",
            "iterations": spectral.ns_iterations,
        }
    pool = None
    if spectral.layer == "pooling" and "root" in treatments:
        pool = GlobalCovariancePool(
            feature_channels(depth=config.depth, width=config.width),
            reduced_channels=config.reduced_channels,
            relative_ridge=spectral.relative_ridge,
            **root,
        )
    features = config.reduced_channels * (config.reduced_channels + 1) // 2
    model = ResNet(
        depth=config.depth,
        width=config.width,
        stem_channels=config.stem_channels,
        classes=classes,
        channels=channels,
        stem=config.stem,
        last_stride=config.last_stride,
        pool=pool,
        pool_features=None if pool is None else features,
        generator=generator,
    )
    # A ResNet-18 step takes .86 of the time with channels last on a CPU (benchmarks/whitening.py).
    # Below eight channels torch 2.13 writes past its memory there, in the backward pass of a 1x1
    # convolution with stride 2.
    if config.width % 8 == 0:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if "root" not in treatments:
        return model
    match spectral.layer:
        case "whitening":
            if "ow" in treatments:
                model.stem = _orthogonal_stem(model.stem, generator=generator)
            insert_whitening(
                model, after="stem", replaces="norm", group_size=spectral.group_size, **root
            )
        case "pooling":
            if "ow" in treatments:
                orthogonal_weight(model.get_submodule("pool.reduce.0"))
        case _:
            assert_never(spectral.layer)
    return model


def _orthogonal_stem(stem: nn.Module, *, generator: torch.Generator | None) -> OrthogonalConv2d:
    assert isinstance(stem, nn.Conv2d)
    if stem.kernel_size[0] != stem.kernel_size[1]:
        raise ConfigError(f"the stem's kernel {stem.kernel_size} is not square")
    return OrthogonalConv2d(
        stem.in_channels,
        stem.out_channels,
        stem.kernel_size[0],
        stride=stem.stride[0],
        bias=False,
        max_norm=_PUBLISHED_NORM if stem.kernel_size[0] == 3 else _ORTHOGONAL_NORM,
        generator=generator,
    )


def build_network(
    job: Job,
    config: ClassifierRun,
    *,
    image_shape: ImageShape,
    classes: int,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The network a job trains.

    Raises:
        ConfigError: Sizes that do not fit each other or the images.
    """
    described = describe_network(job, config, image_shape=image_shape, classes=classes)
    return network_from(described, generator=generator)


def describe_network(
    job: Job, config: ClassifierRun, *, image_shape: ImageShape, classes: int
) -> dict[str, Any]:
    """What it takes to build the same network again from a checkpoint alone: plain values."""
    described: dict[str, Any] = {
        "family": config.family,
        "model": asdict(job.model),
        "image_shape": list(image_shape),
        "classes": classes,
    }
    if isinstance(config, SpectralRun) and isinstance(job.variant, SpectralVariant):
        described["spectral"] = asdict(config.spectral)
        described["treatments"] = list(job.variant.treatments)
    return described


def network_from(
    described: Mapping[str, Any], *, generator: torch.Generator | None = None
) -> nn.Module:
    """The network that :func:`describe_network` told of, with fresh weights."""
    channels, height, width = described["image_shape"]
    classes = described["classes"]
    # Checkpoints of the first version say nothing of a family.
    if described.get("family", "lowrank") == "lowrank":
        return build_vit(
            ModelConfig(**described["model"]),
            image_shape=(channels, height, width),
            classes=classes,
            generator=generator,
        )
    return build_resnet(
        ResNetConfig(**described["model"]),
        spectral=SpectralConfig(**described["spectral"]),
        treatments=tuple(described["treatments"]),
        channels=channels,
        classes=classes,
        generator=generator,
    )


def narrow_to(
    config: NetworkConfig, *, stored: int, image_shape: ImageShape, classes: int
) -> NetworkConfig:
    """The narrowest transformer that stores at least ``stored`` numbers, never wider than given.

    The rival gets the benefit of the doubt: its width is rounded up.

    Args:
        config: The full network.
        stored: Numbers the low-rank network ended with.
        image_shape: ``(channels, size, size)``.
        classes: Outputs.

    Raises:
        ConfigError: The network is no transformer.
    """
    if not isinstance(config, ModelConfig):
        raise ConfigError("narrow_to: only the transformers have a rival of the same size")
    for width in range(config.heads, config.width, config.heads):
        narrow = replace(config, width=width)
        with torch.device("meta"):
            model = build_vit(narrow, image_shape=image_shape, classes=classes)
        if sum(p.numel() for p in model.parameters()) >= stored:
            return narrow
    return config
