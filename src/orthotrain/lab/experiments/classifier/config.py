"""What every run that trains a classifier is made of: data, network, optimizer, record.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from orthotrain.lab.run.config import RunConfig, at_least, below_one, need, not_negative, positive

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
        mixup: Blend each training image with another, by shares of the Beta distribution with
            both parameters this; unset for none.
        train_limit: Use about this many training images, all when unset.
    """

    name: DataName = "digits"
    dir: str | None = None
    image_size: int | None = None
    batch_size: int = 64
    crop_padding: int = 1
    crop_area: float | None = None
    flip: bool = False
    mixup: float | None = None
    train_limit: int | None = None

    def __post_init__(self) -> None:
        need(
            self.image_size is None or self.name not in _FIXED_SIZE,
            f"data.image_size={self.image_size}: the images of {self.name} have one size; leave "
            "it unset",
        )
        at_least(self, 8, "data", "image_size")
        at_least(self, 1, "data", "batch_size", "train_limit")
        need(
            self.crop_area is None or (0 < self.crop_area <= 1 and self.crop_padding == 0),
            f"data.crop_area={self.crop_area} must lie in (0, 1], with data.crop_padding=0",
        )
        need(
            self.mixup is None or 0 < self.mixup <= 1,
            f"data.mixup={self.mixup} must lie in (0, 1]; leave it unset for no blends",
        )
        not_negative(self, "data", "crop_padding")


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
        depth: 18, 50 or 101 layers.
        width: Channels of the first stage; 64 is the published network.
        stem_channels: Channels behind the first convolution.
        stem: 3x3 at full resolution or with stride 2, or 7x7 with stride 2 and a max-pool.
        last_stride: Stride of the last stage; 1 leaves more positions to a covariance.
        reduced_channels: Channels in front of covariance pooling.
    """

    depth: Literal[18, 50, 101] = 18
    width: int = 64
    stem_channels: int = 64
    stem: Literal["cifar", "strided", "imagenet"] = "cifar"
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
        _check_every_optim(self)
        below_one(self, "optim", "warmup_fraction")
        need(
            0 <= self.min_lr <= self.lr,
            f"optim.min_lr={self.min_lr} must lie between 0 and optim.lr={self.lr}",
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
        _check_every_optim(self)
        positive(self, "optim", "head_lr_factor")
        below_one(self, "optim", "momentum")
        not_negative(self, "optim", "weight_decay")
        need(
            all(0 < share < 1 for share in self.decay_at)
            and sorted(set(self.decay_at)) == list(self.decay_at),
            f"optim.decay_at={list(self.decay_at)} must rise within (0, 1)",
        )
        need(0 < self.decay_factor <= 1, f"optim.decay_factor={self.decay_factor} not in (0, 1]")


def _check_every_optim(optim: OptimConfig | SgdConfig) -> None:
    at_least(optim, 1, "optim", "epochs")
    positive(optim, "optim", "lr")
    below_one(optim, "optim", "label_smoothing")
    need(
        optim.clip_norm is None or optim.clip_norm > 0,
        f"optim.clip_norm={optim.clip_norm} must be positive; use null for no clipping",
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
        at_least(self, 1, "record", *vars(self))

    @classmethod
    def every(cls, *, steps: int, epochs: int) -> RecordConfig:
        """Lines every so many steps, all else every so many epochs."""
        return cls(steps, epochs, epochs, epochs)


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
