"""What every run that trains a classifier is made of: data, network, optimizer, record.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from orthotrain.lab.run.config import RunConfig, need

DataName = Literal["digits", "cifar10", "textures", "clothing", "image-folder"]
_FIXED_SIZE = ("digits", "cifar10")


@dataclass(frozen=True)
class DataConfig:
    """The images and how a batch of them is drawn.

    Attributes:
        name: Data set; image-folder is a tree of train/CLASS/*.jpg and val/CLASS/*.jpg.
        dir: Folder (or file) of local data; the environment variable ORTHOTRAIN_DATA when unset.
        image_size: Side in pixels to which images are cropped; unset where the data set has one.
        batch_size: Images per batch.
        crop_padding: Zero padding before a random crop back to size; 0 for none.
        crop_area: Smallest share of an image's area that a random resized crop keeps; unset for
            no such crop. Instead of crop_padding.
        flip: Mirror half of the training images.
        train_limit: Use about this many training images, all when unset.
    """

    name: DataName = "digits"
    dir: str | None = None
    image_size: int | None = None
    batch_size: int = 64
    crop_padding: int = 1
    crop_area: float | None = None
    flip: bool = False
    train_limit: int | None = None

    def __post_init__(self) -> None:
        need(
            self.image_size is None or self.name not in _FIXED_SIZE,
            f"data.image_size={self.image_size}: the images of {self.name} have one size; leave "
            "it unset",
        )
        need(
            self.image_size is None or self.image_size >= 8,
            f"data.image_size={self.image_size} must be at least 8",
        )
        need(self.batch_size >= 1, f"data.batch_size={self.batch_size} must be at least 1")
        need(
            self.crop_area is None or (0 < self.crop_area <= 1 and self.crop_padding == 0),
            f"data.crop_area={self.crop_area} must lie in (0, 1], with data.crop_padding=0",
        )
        need(self.crop_padding >= 0, f"data.crop_padding={self.crop_padding} must not be negative")
        need(
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
class ResNetConfig:
    """Residual network with its spectral layer.

    Attributes:
        depth: 18 or 50 layers.
        width: Channels of the first stage; 64 is the published network.
        stem_channels: Channels behind the first convolution.
        stem: 3x3 at full resolution, or 7x7 and a max-pool.
        last_stride: Stride of the last stage; 1 leaves more positions to a covariance.
        reduced_channels: Channels in front of covariance pooling.
    """

    depth: Literal[18, 50] = 18
    width: int = 64
    stem_channels: int = 64
    stem: Literal["cifar", "imagenet"] = "cifar"
    last_stride: Literal[1, 2] = 2
    reduced_channels: int = 256


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
        need(self.epochs >= 1, f"optim.epochs={self.epochs} must be at least 1")
        need(math.isfinite(self.lr) and self.lr > 0, f"optim.lr={self.lr} must be positive, finite")
        need(
            0 <= self.min_lr <= self.lr,
            f"optim.min_lr={self.min_lr} must lie between 0 and optim.lr={self.lr}",
        )
        need(
            0 <= self.warmup_fraction < 1,
            f"optim.warmup_fraction={self.warmup_fraction} must lie in [0, 1)",
        )
        need(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm={self.clip_norm} must be positive; use null for no clipping",
        )
        need(
            0 <= self.label_smoothing < 1,
            f"optim.label_smoothing={self.label_smoothing} must lie in [0, 1)",
        )


@dataclass(frozen=True)
class SgdConfig:
    """SGD with momentum; the learning rate is constant between decays.

    Attributes:
        epochs: Passes over the training part.
        lr: First learning rate.
        momentum: Momentum, without dampening or Nesterov's step.
        weight_decay: Weight decay of every parameter, as published.
        decay_at: Shares of the run after which the learning rate falls.
        decay_factor: What it is multiplied by then.
        head_lr_factor: Learning rate of the classifier over that of the rest.
        clip_norm: Largest gradient norm; unset for no clipping.
        label_smoothing: Share of the target spread over all classes.
    """

    epochs: int = 350
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_at: tuple[float, ...] = (100 / 350, 200 / 350, 300 / 350)
    decay_factor: float = 0.1
    head_lr_factor: float = 1.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        need(self.epochs >= 1, f"optim.epochs={self.epochs} must be at least 1")
        for name in ("lr", "head_lr_factor"):
            value = getattr(self, name)
            need(math.isfinite(value) and value > 0, f"optim.{name}={value} must be positive")
        need(0 <= self.momentum < 1, f"optim.momentum={self.momentum} must lie in [0, 1)")
        need(self.weight_decay >= 0, f"optim.weight_decay={self.weight_decay} must not be negative")
        need(
            all(0 < share < 1 for share in self.decay_at)
            and sorted(set(self.decay_at)) == list(self.decay_at),
            f"optim.decay_at={list(self.decay_at)} must rise within (0, 1)",
        )
        need(0 < self.decay_factor <= 1, f"optim.decay_factor={self.decay_factor} not in (0, 1]")
        need(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm={self.clip_norm} must be positive; use null for no clipping",
        )
        need(
            0 <= self.label_smoothing < 1,
            f"optim.label_smoothing={self.label_smoothing} must lie in [0, 1)",
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
            need(getattr(self, name) >= 1, f"record.{name}={getattr(self, name)} must be positive")


@dataclass(frozen=True)
class ClassifierRun(RunConfig):
    """Everything that decides the numbers of a run that trains a classifier, but its network.

    Attributes:
        data: Images and batches.
        optim: Optimizer and schedule.
        record: What is written how often.
    """

    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig | SgdConfig = field(default_factory=OptimConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
