"""Runs of image classifiers other than the mini vision transformer: residual networks, ImageNet.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Literal, Self

from orthotrain.lab.experiments.branches.variants import DENSE, BranchedVariant, half, narrow
from orthotrain.lab.experiments.classifier.config import ModelConfig, ResNetConfig
from orthotrain.lab.experiments.lowrank.config import HALF, PAPER, ImageRun, LowRankVariant

Source = Literal["auto", "timm", "own"]


@dataclass(frozen=True)
class Found:
    """A network that two packages have.

    Attributes:
        source: Whose network; auto takes timm's where it is installed.
    """

    source: Source = "auto"

    def found(self) -> Self:
        """The same with a source that is not auto."""
        if self.source != "auto":
            return self
        return replace(self, source="own" if find_spec("timm") is None else "timm")


@dataclass(frozen=True)
class FoundViT(Found, ModelConfig):
    """Vision transformer, timm's where it is installed, else the one of this package.

    Attributes:
        source: Whose network; auto takes timm's where it is installed.
    """


@dataclass(frozen=True)
class FoundResNet(Found, ResNetConfig):
    """Residual network: timm's ResNet-RS where it is installed, else the ResNet of this package.

    Attributes:
        source: Whose network; auto takes timm's where it is installed.
    """


@dataclass(frozen=True)
class ResNetRun(ImageRun):
    """A residual network, dense and low-rank side by side.

    Attributes:
        model: Network.
    """

    model: ResNetConfig = field(default_factory=ResNetConfig)


@dataclass(frozen=True)
class FoundViTRun(ImageRun):
    """A vision transformer of timm, dense and low-rank side by side.

    Attributes:
        model: Network.
    """

    model: FoundViT = field(default_factory=FoundViT)


@dataclass(frozen=True)
class FoundResNetRun(ResNetRun):
    """A ResNet-RS of timm, dense and low-rank side by side.

    Attributes:
        model: Network.
    """

    model: FoundResNet = field(default_factory=FoundResNet)


def image_variants(config: ResNetRun | FoundViTRun) -> tuple[BranchedVariant, ...]:
    """Dense, published, both factors trained, and a narrow network of the same stored size."""
    return (
        LowRankVariant(DENSE, "dense", "the same network without any method"),
        LowRankVariant(
            PAPER,
            "OIALR, published settings",
            "settings of the authors' code, times as shares of the run",
            lowrank=config.paper,
        ),
        half(HALF),
        narrow(HALF),
    )
