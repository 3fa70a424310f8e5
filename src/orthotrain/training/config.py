"""What a run is made of: the same frozen dataclasses are Python config, YAML file and flags.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from orthotrain.errors import ConfigError

Scale = Literal["smoke", "cpu", "full"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]
DENSE, PAPER, TUNED, NARROW = "dense", "oialr-paper", "oialr-tuned", "narrow"


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class DataConfig:
    """The images and how a batch of them is drawn.

    Attributes:
        name: Data set.
        dir: Folder (or file) of local data; the environment variable ORTHOTRAIN_DATA when unset.
        batch_size: Images a batch.
        crop_padding: Zero padding before a random crop back to size; 0 for none.
        flip: Mirror half of the training images.
        train_limit: Use about this many training images, all when unset.
    """

    name: Literal["digits", "cifar10"] = "digits"
    dir: str | None = None
    batch_size: int = 64
    crop_padding: int = 1
    flip: bool = False
    train_limit: int | None = None

    def __post_init__(self) -> None:
        _need(self.batch_size >= 1, f"data.batch_size={self.batch_size} must be at least 1")
        _need(self.crop_padding >= 0, f"data.crop_padding={self.crop_padding} must not be negative")
        _need(
            self.train_limit is None or self.train_limit >= 1,
            f"data.train_limit={self.train_limit} must be at least 1",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Mini vision transformer.

    Attributes:
        patch_size: Side of a patch in pixels.
        width: Token width, a multiple of heads.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over width.
    """

    patch_size: int = 4
    width: int = 96
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and a cosine to min_lr.

    Attributes:
        epochs: Passes over the training part.
        lr: Peak learning rate.
        min_lr: Learning rate of the last step.
        warmup_fraction: Share of all steps spent on the warm-up.
        weight_decay: Decoupled weight decay of matrices; biases and norms have none.
        clip_norm: Largest gradient norm; unset for no clipping.
        label_smoothing: Share of the target spread over all classes.
    """

    epochs: int = 60
    lr: float = 2e-3
    min_lr: float = 2e-3 / 30
    warmup_fraction: float = 10 / 300
    weight_decay: float = 0.01
    clip_norm: float | None = 5.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _need(self.epochs >= 1, f"optim.epochs={self.epochs} must be at least 1")
        _need(
            math.isfinite(self.lr) and self.lr > 0, f"optim.lr={self.lr} must be positive, finite"
        )
        _need(
            0 <= self.min_lr <= self.lr,
            f"optim.min_lr={self.min_lr} must lie between 0 and optim.lr={self.lr}",
        )
        _need(
            0 <= self.warmup_fraction < 1,
            f"optim.warmup_fraction={self.warmup_fraction} must lie in [0, 1)",
        )
        _need(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm={self.clip_norm} must be positive; use null for no clipping",
        )
        _need(
            0 <= self.label_smoothing < 1,
            f"optim.label_smoothing={self.label_smoothing} must lie in [0, 1)",
        )


@dataclass(frozen=True)
class LowRankConfig:
    """Settings of AdaptiveLowRank with times as shares of the run, so they scale with its length.

    Attributes:
        delay_fraction: Dense steps before the switch over all steps, or auto.
        every_fraction: Steps between rank updates over all steps.
        rank_rtol: Drop singular values below this share of the largest (the paper's beta).
        energy: Keep this share of a layer's energy instead; what was cut before counts as lost.
        stored_budget: Keep this share of the dense model's stored numbers instead.
        layer_fraction: Each update reaches this much further to the front (the paper's alpha).
        max_drop: Largest share of a rank that one update drops.
        min_rank_fraction: Smallest rank over the layer's smaller side.
        only_if_cheaper: A layer stays dense until its rank pays.
        optimizer_state: How optimizer state follows.
    """

    delay_fraction: float | Literal["auto"] = 50 / 300
    every_fraction: float = 10 / 300
    rank_rtol: float = 0.1
    energy: float | None = None
    stored_budget: float | None = None
    layer_fraction: float = 0.1
    max_drop: float = 0.5
    min_rank_fraction: float = 0.01
    only_if_cheaper: bool = True
    optimizer_state: Literal["rotate", "slice", "reset"] = "rotate"

    def __post_init__(self) -> None:
        _need(
            self.delay_fraction == "auto" or 0 <= self.delay_fraction < 1,
            f"delay_fraction={self.delay_fraction} must lie in [0, 1) or be auto",
        )
        _need(
            0 < self.every_fraction <= 1, f"every_fraction={self.every_fraction} must lie in (0, 1]"
        )


@dataclass(frozen=True)
class RecordConfig:
    """What is written how often.

    Attributes:
        log_every_steps: Steps between lines with loss and time.
        eval_every_epochs: Epochs between looks at the validation part.
        stability_every_epochs: Epochs between measurements of the bases.
        checkpoint_every_epochs: Epochs between checkpoints.
    """

    log_every_steps: int = 8
    eval_every_epochs: int = 2
    stability_every_epochs: int = 5
    checkpoint_every_epochs: int = 10

    def __post_init__(self) -> None:
        for name in (
            "log_every_steps",
            "eval_every_epochs",
            "stability_every_epochs",
            "checkpoint_every_epochs",
        ):
            _need(getattr(self, name) >= 1, f"record.{name}={getattr(self, name)} must be positive")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of a run.

    Attributes:
        recipe: Name in the catalog.
        scale: Size of the run.
        data: Images and batches.
        model: Network.
        optim: Optimizer and schedule.
        paper: Low-rank settings of the variant oialr-paper.
        tuned: Low-rank settings of the variant oialr-tuned.
        record: What is written how often.
        variants: Variants to train.
        seeds: Seeds of every variant.
        device: Where to train; auto takes a GPU when there is one.
        precision: Arithmetic of the forward pass; weights stay float32.
        threads: CPU threads of one training. Results are equal bit for bit at equal threads.
    """

    recipe: str
    scale: Scale = "cpu"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    paper: LowRankConfig = field(default_factory=LowRankConfig)
    tuned: LowRankConfig = field(default_factory=LowRankConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    variants: tuple[str, ...] = (DENSE, PAPER, TUNED, NARROW)
    seeds: tuple[int, ...] = (0, 1, 2)
    device: Device = "auto"
    precision: Precision = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        known = (DENSE, PAPER, TUNED, NARROW)
        for name in self.variants:
            _need(
                name in known,
                f"variants: {name!r} is not a variant; choose from {', '.join(known)}",
            )
        for name, values in (("variants", self.variants), ("seeds", self.seeds)):
            _need(len(values) > 0, f"{name} is empty; give at least one")
            _need(len(set(values)) == len(values), f"{name}={list(values)} names one twice")
        _need(min(self.seeds) >= 0, f"seeds={list(self.seeds)} must not be negative")
        _need(self.threads >= 1, f"threads={self.threads} must be at least 1")


@dataclass(frozen=True)
class Variant:
    """One way to train: a name, and what is different about it.

    Attributes:
        name: Folder name.
        title: What a report calls it.
        note: One sentence.
        lowrank: Settings of AdaptiveLowRank, None for dense training.
        same_size_as: Narrow the network until it stores what this variant ended with.
    """

    name: str
    title: str
    note: str
    lowrank: LowRankConfig | None = None
    same_size_as: str | None = None


@dataclass(frozen=True)
class Job:
    """One training: a variant, a seed and the network it trains."""

    variant: Variant
    seed: int
    model: ModelConfig


def variants_of(config: RunConfig) -> tuple[Variant, ...]:
    """The variants that ``config`` names, in an order in which each finds what it needs."""
    known = (
        Variant(DENSE, "dense", "the same network without any method"),
        Variant(
            PAPER,
            "OIALR, published settings",
            "settings of the authors' CIFAR-10 mini ViT, times scaled to the length of this run",
            lowrank=config.paper,
        ),
        Variant(
            TUNED,
            "OIALR, tuned",
            "rule, threshold and delay chosen by a recorded grid on the validation part",
            lowrank=config.tuned,
        ),
        Variant(
            NARROW,
            "narrow dense",
            "a dense network, narrowed to the stored size that OIALR, tuned ended with",
            same_size_as=TUNED,
        ),
    )
    return tuple(variant for variant in known if variant.name in config.variants)
