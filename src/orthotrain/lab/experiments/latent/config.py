"""Runs that compare treatments of a generator's latent weight.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from orthotrain.lab.experiments.treatments import (
    LATENT,
    NOG,
    OLR,
    RETRACTION,
    VP,
    TreatedVariant,
    Treatment,
    alone,
    name_of,
    note_of,
)
from orthotrain.lab.run.config import RunConfig, at_least, need, not_negative, positive

LatentData = Literal["gaussian", "sprites", "faces", "clothing", "cifar10", "image-folder"]
GeneratorKind = Literal["linear", "eigen", "simple"]
AdversarialLoss = Literal["hinge", "non_saturating", "wasserstein"]
OptimizerName = Literal["adam", "sgd"]

_WEIGHT: Final = "the latent weight"
_SUMS: Final = ((NOG, OLR), (NOG, RETRACTION))
# NOG changes the norm of a gradient, and with it the best learning rate; the baseline gets the
# same rates, so that neither is better for being tuned alone.
_LR_FACTORS: Final = (1 / 3, 3.0)
BASELINE: Final = "baseline"


@dataclass(frozen=True)
class LatentDataConfig:
    """What is imitated, and how much of it a step sees.

    Attributes:
        name: gaussian are vectors of six strong directions in noise, the same for every seed of
            a run; sprites are rendered; the others are images on disk.
        dir: Folder (or file) of local data; the environment variable ORTHOTRAIN_DATA when unset.
        image_size: Side in pixels, a power of two; dimensions of a vector.
        batch_size: Samples per step.
        orientation: Whether sprites are turned; no code can tell all turns apart.
        color: Whether sprites have a hue as a further factor.
        correlation: Between where a sprite is in x and in y, in [-1, 1], in what is trained on;
            scores are taken on sprites whose factors are independent.
    """

    name: LatentData = "gaussian"
    dir: str | None = None
    image_size: int = 64
    batch_size: int = 64
    orientation: bool = False
    color: bool = False
    correlation: float = 0.0

    def __post_init__(self) -> None:
        of_sprites = self.color or self.orientation or self.correlation != 0
        need(
            self.name == "sprites" or not of_sprites,
            f"data.color, data.orientation and data.correlation are of sprites; {self.name} has "
            "none of them",
        )
        need(
            -1 <= self.correlation <= 1,
            f"data.correlation={self.correlation} must lie in [-1, 1]",
        )
        at_least(self, 8, "data", "image_size")
        at_least(self, 2, "data", "batch_size")


@dataclass(frozen=True)
class GeneratorConfig:
    """Generator and discriminator.

    Attributes:
        kind: linear is one latent layer and noise, against a quadratic critic; eigen is EigenGAN;
            simple is a stack of transposed convolutions.
        latent_dim: Coordinates: of each block of an EigenGAN, of all else.
        noise_dim: Coordinates of EigenGAN's own noise at its start; 0 learns a constant instead.
        base_channels: Channels at full resolution.
    """

    kind: GeneratorKind = "linear"
    latent_dim: int = 6
    noise_dim: int = 0
    base_channels: int = 16

    def __post_init__(self) -> None:
        at_least(self, 1, "model", "latent_dim", "base_channels")
        not_negative(self, "model", "noise_dim")


@dataclass(frozen=True)
class AdversarialConfig:
    """Two players, one step each in turn.

    Attributes:
        steps: Optimizer steps of each.
        lr: Learning rate of the generator.
        discriminator_lr: Learning rate of the discriminator, the same when unset.
        betas: Adam's decay rates, for both.
        loss: Of both players.
        r1: Weight of the penalty on the discriminator's gradient at real samples; 0 for none.
        r1_every: Steps between penalties, which then count that much more.
        gradient_penalty: Weight of the penalty between real and generated samples; 0 for none.
        gradient_penalty_every: Steps between these, which then count that much more.
        augment: DiffAugment, drawn alike for real and generated images.
        ema_half_life: Images after which a weight counts half in the averaged generator.
        constant_fraction: Share of the run after which the learning rate falls linearly to zero.
    """

    steps: int = 2_000
    lr: float = 1e-3
    discriminator_lr: float | None = None
    betas: tuple[float, float] = (0.5, 0.99)
    loss: AdversarialLoss = "non_saturating"
    r1: float = 0.0
    r1_every: int = 1
    gradient_penalty: float = 0.0
    gradient_penalty_every: int = 1
    augment: bool = False
    ema_half_life: float = 10_000.0
    constant_fraction: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 1, "optim", "steps", "r1_every", "gradient_penalty_every")
        positive(self, "optim", "lr", "ema_half_life")
        not_negative(self, "optim", "r1", "gradient_penalty")
        need(
            self.discriminator_lr is None or self.discriminator_lr > 0,
            f"optim.discriminator_lr={self.discriminator_lr} must be positive, or null",
        )
        need(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={list(self.betas)} must lie in [0, 1)",
        )
        need(
            0 < self.constant_fraction <= 1,
            f"optim.constant_fraction={self.constant_fraction} must lie in (0, 1]",
        )


@dataclass(frozen=True)
class LatentConfig:
    """The treatments' settings.

    Attributes:
        penalty: Weight of the orthogonal penalty in the loss.
        hessian: Weight of the Hessian penalty.
        orojar: Weight of OroJaR.
        vp: Weight of the VP loss.
        householder_fraction: Steps of the Householder projector after the baseline's training, as
            a share of that training's.
        sgd_lr: Learning rate of the latent weight in the controls with SGD.
        monitor_every_steps: Optimizer steps between readings of condition and orthonormality.
    """

    penalty: float = 0.25
    hessian: float = 1e-3
    orojar: float = 1e-6
    vp: float = 0.1
    householder_fraction: float = 0.1
    sgd_lr: float = 3e-2
    monitor_every_steps: int = 20

    def __post_init__(self) -> None:
        weights = ("penalty", "hessian", "orojar", "vp")
        positive(self, "latent", *weights, "householder_fraction", "sgd_lr")
        at_least(self, 1, "latent", "monitor_every_steps")


@dataclass(frozen=True)
class LatentRecordConfig:
    """What is written how often.

    Attributes:
        log_every_steps: Steps between lines with losses and time.
        sample_every_steps: Steps between grids of samples.
        checkpoint_every_steps: Steps between checkpoints.
    """

    log_every_steps: int = 50
    sample_every_steps: int = 500
    checkpoint_every_steps: int = 500

    def __post_init__(self) -> None:
        at_least(self, 1, "record", *vars(self))


@dataclass(frozen=True)
class LatentVariant(TreatedVariant):
    """A way to train a generator.

    Attributes:
        optimizer: Of the latent weight; the rest of the generator has Adam.
        lr_factor: Learning rate of the generator over that of the run.
    """

    optimizer: OptimizerName = "adam"
    lr_factor: float = 1.0

    def settings(self) -> Mapping[str, object]:
        """What result.json says about it, beside the network."""
        return {
            **super().settings(),
            "optimizer": "sgd for the latent weight" if self.optimizer == "sgd" else "adam",
            "lr_factor": self.lr_factor,
        }


@dataclass(frozen=True)
class LatentRun(RunConfig):
    """A generator, and every treatment of its latent weight.

    Attributes:
        data: What is imitated.
        model: Generator and discriminator.
        optim: Losses, optimizers and their schedule.
        latent: Settings of the treatments.
        record: What is written how often.
    """

    data: LatentDataConfig = field(default_factory=LatentDataConfig)
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    optim: AdversarialConfig = field(default_factory=AdversarialConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    record: LatentRecordConfig = field(default_factory=LatentRecordConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        need(
            (self.data.name == "gaussian") == (self.model.kind == "linear"),
            f"model.kind={self.model.kind} and data.name={self.data.name}: the linear generator "
            "makes vectors, gaussian data, and the others make images",
        )
        need(
            self.model.kind != "linear" or VP.name not in self.variants,
            f"variants: the network of {VP.name} looks at images, and a linear generator makes "
            f"vectors; leave {VP.name} out",
        )


def latent_variants(config: LatentRun) -> tuple[LatentVariant, ...]:
    """The baseline, every treatment, the rivals, and the controls.

    Controls are two more learning rates, and SGD in place of Adam.
    """
    baseline = LatentVariant(BASELINE, "baseline", "the latent weight as it is, trained by Adam")
    chosen = [*alone(LATENT), *_SUMS]
    # What acts on the weight comes before what acts on the loss alone.
    chosen.sort(key=lambda rows: rows[0].make is None)
    treated = [_treated(rows) for rows in chosen]
    of_weight = [one for one, rows in zip(treated, chosen, strict=True) if rows[0].make]
    return (
        baseline,
        *treated,
        *(
            _at_another_rate(one, factor)
            for one in (baseline, _treated((NOG,)))
            for factor in _LR_FACTORS
        ),
        *(_with_sgd(variant) for variant in (baseline, *of_weight)),
    )


def _treated(chosen: tuple[Treatment, ...]) -> LatentVariant:
    return LatentVariant(
        name_of(chosen),
        " + ".join(row.title for row in chosen),
        note_of(chosen, weight=_WEIGHT),
        treatments=tuple(row.name for row in chosen),
    )


def _at_another_rate(variant: LatentVariant, factor: float) -> LatentVariant:
    text = f"{factor:.2g}"
    return LatentVariant(
        f"{variant.name}-lr{text}",
        f"{variant.title}, lr x {text}",
        f"control: the learning rate of the generator times {text}",
        treatments=variant.treatments,
        lr_factor=factor,
    )


def _with_sgd(variant: LatentVariant) -> LatentVariant:
    return LatentVariant(
        f"{variant.name}-sgd",
        f"{variant.title}, SGD",
        "control: SGD in place of Adam for the latent weight, at a rate of its own",
        treatments=variant.treatments,
        optimizer="sgd",
    )
