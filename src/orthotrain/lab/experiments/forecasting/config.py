"""Runs that compare a forecaster, dense, regularised, narrow and low-rank, side by side.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from orthotrain.lab.experiments.branches.variants import (
    PUBLISHED,
    BranchedVariant,
    dense,
    half,
    narrow,
)
from orthotrain.lab.run.config import (
    RunConfig,
    at_least,
    below_one,
    not_negative,
    positive,
)

#: Lengths that the papers forecast.
AHEAD: Final = (96, 192, 336, 720)
#: The published rule drops singular values below this share of the largest: weak to strong.
STRENGTHS: Final = (0.1, 0.2, 0.35, 0.5)
REGULARISED: Final = "dense-regularised"
#: Percent of the dense network's numbers that trained factors and the narrow network store.
HALF: Final = 50


@dataclass(frozen=True)
class SeriesConfig:
    """The series and how a batch of windows is drawn.

    Attributes:
        name: Which of the four files.
        dir: The file or the folder that has it; the environment variable ORTHOTRAIN_DATA when
            unset.
        batch_size: Windows per batch.
        every: Of the windows that are measured, every so many is taken.
    """

    name: Literal["ettm1", "ettm2", "etth1", "etth2"] = "ettm2"
    dir: str | None = None
    batch_size: int = 32
    every: int = 1

    def __post_init__(self) -> None:
        at_least(self, 1, "data", "batch_size", "every")


@dataclass(frozen=True)
class ForecasterConfig:
    """An Autoformer.

    Attributes:
        read: Steps that are read.
        known: Last read steps that the decoder begins with.
        ahead: Steps that are forecast.
        width: Width of a step, a multiple of heads.
        encoder_depth: Layers of the encoder.
        decoder_depth: Layers of the decoder.
        heads: Heads of each auto-correlation.
        mlp_ratio: Hidden width of the pointwise layers over width.
        window: Odd number of steps of the moving average.
        factor: So many times log(steps) delays are mixed.
        dropout: Share of zeros in training.
    """

    read: int = 96
    known: int = 48
    ahead: int = 96
    width: int = 512
    encoder_depth: int = 2
    decoder_depth: int = 1
    heads: int = 8
    mlp_ratio: float = 4.0
    window: int = 25
    factor: float = 3.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        below_one(self, "model", "dropout")


@dataclass(frozen=True)
class ForecastOptim:
    """AdamW with linear warm-up and a cosine to zero.

    Attributes:
        steps: Optimizer steps.
        lr: Peak learning rate.
        warmup_fraction: Share of all steps spent on the warm-up.
        weight_decay: Decoupled weight decay of matrices.
        clip_norm: Largest gradient norm; unset for no clipping.
    """

    steps: int = 10_000
    lr: float = 1e-4
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "optim", "steps")
        positive(self, "optim", "lr")
        below_one(self, "optim", "warmup_fraction")
        not_negative(self, "optim", "weight_decay")


@dataclass(frozen=True)
class Regularisation:
    """What the regularised dense network has instead.

    Attributes:
        weight_decay: Decoupled weight decay of matrices.
        dropout: Share of zeros in training.
    """

    weight_decay: float = 0.1
    dropout: float = 0.2

    def __post_init__(self) -> None:
        not_negative(self, "regularised", "weight_decay")
        below_one(self, "regularised", "dropout")


@dataclass(frozen=True)
class ForecastRecord:
    """What is written how often.

    Attributes:
        log_every_steps: Steps between lines with loss and time.
        eval_every_steps: Steps between looks at the validation part; the best model is kept.
        checkpoint_every_steps: Steps between checkpoints.
        eval_windows: Windows that such a look reads.
    """

    log_every_steps: int = 20
    eval_every_steps: int = 200
    checkpoint_every_steps: int = 500
    eval_windows: int = 512

    def __post_init__(self) -> None:
        at_least(self, 1, "record", *vars(self))


@dataclass(frozen=True)
class ForecastVariant(BranchedVariant):
    """A way to train a forecaster.

    Attributes:
        regularised: Whether weight decay and dropout are those of the regularised network.
    """

    regularised: bool = False

    def settings(self) -> Mapping[str, object]:
        """What result.json says about it, beside the network."""
        return {**super().settings(), "regularised": self.regularised}


@dataclass(frozen=True)
class ForecastRun(RunConfig):
    """An Autoformer, dense, regularised, narrow and low-rank, side by side.

    Attributes:
        data: The series.
        model: Network.
        optim: Optimizer and schedule.
        regularised: Of the regularised dense network.
        record: What is written how often.
    """

    data: SeriesConfig = field(default_factory=SeriesConfig)
    model: ForecasterConfig = field(default_factory=ForecasterConfig)
    optim: ForecastOptim = field(default_factory=ForecastOptim)
    regularised: Regularisation = field(default_factory=Regularisation)
    record: ForecastRecord = field(default_factory=ForecastRecord)


def forecast_variants(config: ForecastRun) -> tuple[BranchedVariant, ...]:
    """Dense, regularised, narrow; the published method at four strengths; trained factors."""
    rate = config.optim.lr
    return (
        dense(rate),
        ForecastVariant(
            REGULARISED,
            "dense, regularised",
            "the same network with weight decay and dropout chosen on the validation part",
            lr=rate,
            regularised=True,
        ),
        narrow(HALF, rate),
        *(
            BranchedVariant(
                f"oialr-{i}",
                f"OIALR, threshold {strength:g}",
                f"the published rule at {strength:g}: singular values below this share of the "
                "largest are dropped",
                lr=rate,
                cut=replace(PUBLISHED, rank_rtol=strength),
            )
            for i, strength in enumerate(STRENGTHS, start=1)
        ),
        half(HALF, rate),
    )
