"""Runs that compare a forecaster, dense, regularised, narrow and low-rank, side by side.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from orthotrain.lab.run.config import (
    RunConfig,
    at_least,
    below_one,
    not_negative,
    positive,
)


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
        ahead: Steps that are forecast; 96, 192, 336 and 720 in the papers.
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
class ForecastRun(RunConfig):
    """An Autoformer, dense, regularised, narrow and low-rank, side by side.

    Attributes:
        data: The series.
        model: Network.
        optim: Optimizer and schedule.
        record: What is written how often.
    """

    data: SeriesConfig = field(default_factory=SeriesConfig)
    model: ForecasterConfig = field(default_factory=ForecasterConfig)
    optim: ForecastOptim = field(default_factory=ForecastOptim)
    record: ForecastRecord = field(default_factory=ForecastRecord)
