"""Runs that compare a language model cut after or in its training with narrow ones.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orthotrain.lab.experiments.branches.variants import BranchOptim
from orthotrain.lab.run.config import (
    RunConfig,
    at_least,
    below_one,
    need,
    not_negative,
    positive,
)


@dataclass(frozen=True)
class TextConfig:
    """The text and how a batch of it is drawn.

    Attributes:
        dir: Folder of Python's standard library; that of the running Python when unset.
        batch_size: Windows per batch; each has the length of the model's context.
    """

    dir: str | None = None
    batch_size: int = 12

    def __post_init__(self) -> None:
        at_least(self, 1, "data", "batch_size")


@dataclass(frozen=True)
class GPTConfig:
    """A byte-level GPT.

    Attributes:
        context: Bytes that it sees.
        width: Token width, a multiple of heads.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over width.
    """

    context: int = 64
    width: int = 128
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class TrainingConfig:
    """AdamW with linear warm-up and a cosine to zero.

    Attributes:
        steps: Optimizer steps of dense training.
        lr: Peak learning rate.
        warmup_fraction: Share of all steps spent on the warm-up.
        weight_decay: Decoupled weight decay of matrices; norms have none.
        betas: Decay of the first and second moment.
        clip_norm: Largest gradient norm; unset for no clipping.
    """

    steps: int = 6000
    lr: float = 3e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        at_least(self, 1, "optim", "steps")
        positive(self, "optim", "lr")
        below_one(self, "optim", "warmup_fraction")
        not_negative(self, "optim", "weight_decay")
        need(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={list(self.betas)} must be two numbers in [0, 1)",
        )
        need(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm={self.clip_norm} must be positive; use null for no clipping",
        )


@dataclass(frozen=True)
class LanguageRecord:
    """What is written how often.

    Attributes:
        log_every_steps: Steps between lines with loss and time.
        eval_every_steps: Steps between looks at the validation part.
        checkpoint_every_steps: Steps between checkpoints.
        eval_windows: Windows that such a look reads.
        final_windows: Windows that the result reads, of each part.
    """

    log_every_steps: int = 20
    eval_every_steps: int = 150
    checkpoint_every_steps: int = 500
    eval_windows: int = 256
    final_windows: int = 2048

    def __post_init__(self) -> None:
        at_least(self, 1, "record", *vars(self))


@dataclass(frozen=True)
class LanguageRun(RunConfig):
    """A byte-level GPT, dense, cut and narrow, side by side.

    Attributes:
        data: The text.
        model: Network.
        optim: Optimizer and schedule of dense training.
        branch: Training on after a cut.
        record: What is written how often.
    """

    data: TextConfig = field(default_factory=TextConfig)
    model: GPTConfig = field(default_factory=GPTConfig)
    optim: TrainingConfig = field(default_factory=TrainingConfig)
    branch: BranchOptim = field(default_factory=BranchOptim)
    record: LanguageRecord = field(default_factory=LanguageRecord)
