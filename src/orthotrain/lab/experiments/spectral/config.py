"""Runs that compare treatments of an ill-conditioned spectral layer.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal

from orthotrain.lab.experiments.classifier.config import ClassifierRun, ResNetConfig, SgdConfig
from orthotrain.lab.experiments.treatments import (
    FIXED,
    NOG,
    OL,
    OLR,
    OW,
    SN,
    SPECTRAL,
    TreatedVariant,
    Treatment,
    alone,
    name_of,
    note_of,
)
from orthotrain.lab.run.config import at_least, below_one, need, not_negative

SpectralLayer = Literal["whitening", "pooling"]

#: A spectral layer whose root is an eigendecomposition, and Newton-Schulz in its place.
ROOT, NEWTON_SCHULZ = "root", "ns"
_WEIGHT: Final = "the weight before it"
_SUMS: Final = ((NOG, SN), (NOG, OL), (NOG, OW), (NOG, OLR), (OW, OLR), (NOG, OW, OLR))
_HELD: Final[tuple[tuple[Treatment, ...], ...]] = ((), (NOG,), (OLR,), (NOG, OLR))

_LONG: Final = ((), (NOG,), (OLR,), (NOG, OLR), (OW,), (NOG, OW, OLR))


@dataclass(frozen=True)
class SpectralConfig:
    """The spectral layer, and the settings its treatments share.

    Attributes:
        layer: ZCA whitening behind the stem, or covariance pooling before the classifier.
        ridge: Added to the diagonal of the covariance.
        relative_ridge: Added, too, times the mean eigenvalue; pooling only.
        group_size: Channels whitened together, all when unset.
        ns_iterations: Newton-Schulz iterations of the variant that has no eigendecomposition.
        penalty: Weight of the orthogonal penalty in the loss.
        nog_scale: Norm of the nearest orthogonal gradient; none is as published.
        nog_when: Before momentum, as published, or on the executed update.
        olr_target: What the optimal learning rate minimises; vector is as published.
        olr_floor: Smallest learning rate as a share of the optimizer's.
        monitor_every_steps: Optimizer steps between readings of the condition.
    """

    layer: SpectralLayer = "whitening"
    ridge: float = 1e-2
    relative_ridge: float = 0.0
    group_size: int | None = None
    ns_iterations: int = 5
    penalty: float = 1e-2
    nog_scale: Literal["none", "gradient_norm", "rms"] = "none"
    nog_when: Literal["gradient", "update"] = "gradient"
    olr_target: Literal["vector", "matrix"] = "vector"
    olr_floor: float = 0.0
    monitor_every_steps: int = 10

    def __post_init__(self) -> None:
        not_negative(self, "spectral", "ridge", "relative_ridge")
        at_least(self, 1, "spectral", "ns_iterations", "monitor_every_steps", "group_size")
        need(
            math.isfinite(self.penalty) and self.penalty > 0,
            f"spectral.penalty={self.penalty} must be positive; leave the variants with ol out for "
            "none",
        )
        below_one(self, "spectral", "olr_floor")
        need(
            self.group_size is None or self.layer == "whitening",
            f"spectral.group_size={self.group_size}: covariance pooling has no groups of channels; "
            "leave it unset",
        )
        need(
            self.relative_ridge == 0 or self.layer == "pooling",
            f"spectral.relative_ridge={self.relative_ridge}: whitening has a ridge alone; set "
            "spectral.ridge",
        )


@dataclass(frozen=True)
class SpectralRun(ClassifierRun):
    """A residual network with a spectral layer, and every treatment of the weight before it.

    Attributes:
        model: Network.
        optim: Optimizer and schedule.
        spectral: The spectral layer and the settings of its treatments.
    """

    model: ResNetConfig = field(default_factory=ResNetConfig)
    optim: SgdConfig = field(default_factory=SgdConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)


def spectral_variants(config: SpectralRun) -> tuple[TreatedVariant, ...]:
    """The network without the layer, the layer alone, its treatments and sums, and controls.

    The controls hold the Frobenius norm of the weight before the layer where it began.
    """
    match config.spectral.layer:
        case "whitening":
            without = TreatedVariant("bn", "BatchNorm", "batch norm in place of whitening")
            root, short = "zca", "ZCA"
        case "pooling":
            without = TreatedVariant(
                "avg", "average pooling", "the mean over positions in place of a covariance"
            )
            root, short = "gcp", "GCP"
    return (
        without,
        TreatedVariant(
            root,
            f"{short} alone",
            "square root by eigendecomposition, its exact gradient, nothing else",
            treatments=(ROOT,),
        ),
        TreatedVariant(
            NEWTON_SCHULZ,
            "Newton-Schulz",
            f"{config.spectral.ns_iterations} coupled Newton-Schulz iterations and their own "
            "gradient in place of the eigendecomposition, as published",
            treatments=(ROOT, NEWTON_SCHULZ),
        ),
        *(_treated(short, chosen) for chosen in (*alone(SPECTRAL), *_SUMS)),
        *(_held(root, short, chosen) for chosen in _HELD),
    )


def long_variants(config: SpectralRun) -> tuple[str, ...]:
    """What a long run trains: without the layer, the layer alone, NOG, OLR and orthogonal weights.

    Each also with the norm of the weight held, but those whose weight is orthogonal anyway.
    """
    without, root, *_ = spectral_variants(config)
    named = [name_of(chosen) or root.name for chosen in _LONG]
    held = [f"{name_of(chosen) or root.name}-{FIXED.name}" for chosen in _HELD]
    return (without.name, *named, *held)


def _treated(short: str, chosen: tuple[Treatment, ...]) -> TreatedVariant:
    return TreatedVariant(
        name_of(chosen),
        " + ".join((short, *(row.title for row in chosen))),
        note_of(chosen, weight=_WEIGHT),
        treatments=(ROOT, *(row.name for row in chosen)),
    )


def _held(root: str, short: str, chosen: tuple[Treatment, ...]) -> TreatedVariant:
    return TreatedVariant(
        f"{name_of(chosen) or root}-{FIXED.name}",
        f"{' + '.join((short, *(row.title for row in chosen)))}, {FIXED.title}",
        note_of((FIXED,), weight=_WEIGHT),
        treatments=(ROOT, *(row.name for row in (*chosen, FIXED))),
    )
