"""A fresh residual network with its spectral layer, and back from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, assert_never

import torch
from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.classifier.config import ResNetConfig
from orthotrain.lab.experiments.spectral.config import NEWTON_SCHULZ, ROOT, SpectralConfig
from orthotrain.lab.experiments.treatments import OW
from orthotrain.lab.run.restore import rebuilds
from orthotrain.layers import (
    GlobalCovariancePool,
    OrthogonalConv2d,
    insert_whitening,
    orthogonal_weight,
)
from orthotrain.models.resnet import ResNet, feature_channels

# The spectral layer, and the layer before it, whose weight the treatments act on.
SPECTRAL_LAYER: Final = {"whitening": "norm", "pooling": "pool"}
LAYER_BEFORE: Final = {"whitening": "stem", "pooling": "pool.reduce.0"}
# Of the skew kernel of an orthogonal stem. The published bound leaves out the root of the kernel's
# area, for 3x3 a factor of three, with which five terms are orthogonal to .21 still; a larger
# kernel gets the norm itself.
_ORTHOGONAL_NORM: Final = 0.7
_PUBLISHED_NORM: Final = 3 * _ORTHOGONAL_NORM


def build_resnet(
    config: ResNetConfig,
    *,
    spectral: SpectralConfig,
    treatments: Sequence[str],
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
    if NEWTON_SCHULZ in treatments:
        root |= {
            "method": "newton_schulz",
            "gradient": "newton_schulz",
            "iterations": spectral.ns_iterations,
        }
    pool = None
    if spectral.layer == "pooling" and ROOT in treatments:
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
    if ROOT not in treatments:
        return model
    match spectral.layer:
        case "whitening":
            if OW.name in treatments:
                model.stem = _orthogonal_stem(model.stem, generator=generator)
            insert_whitening(
                model, after="stem", replaces="norm", group_size=spectral.group_size, **root
            )
        case "pooling":
            if OW.name in treatments:
                orthogonal_weight(model.get_submodule(LAYER_BEFORE["pooling"]))
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


@rebuilds
def resnet_from(*, model: Mapping[str, Any], spectral: Mapping[str, Any], **more: Any) -> ResNet:
    """The network of a checkpoint, with fresh weights."""
    return build_resnet(ResNetConfig(**model), spectral=SpectralConfig(**spectral), **more)
