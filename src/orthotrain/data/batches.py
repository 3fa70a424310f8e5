"""Shuffled, augmented batches whose place in the stream can be saved and restored."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor
from torch.nn import functional as F

from orthotrain.data.mixup import mixup as blended
from orthotrain.data.mixup import mixup_share
from orthotrain.data.splits import Split
from orthotrain.errors import ConfigError, ShapeError, StateError

# Width over height of a random resized crop, the range of Szegedy et al. (2015),
# arXiv:1409.4842.
_LOG_RATIO = math.log(4 / 3)
# Which images of a batch: a slice or their places.
Part = slice | Int64[Tensor, " batch"]
Targets = Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]


class BatchStream:
    """Endless shuffled batches; each pass over the data drops the incomplete last batch.

    All random numbers come from one generator. The state holds that generator, the order of the
    current pass and the place in it. A restored stream goes on with the same images.

    Args:
        split: The data to draw from.
        batch_size: Images per batch.
        seed: Seed of the stream's own generator.
        crop_padding: Zero padding on each side before a random crop back to size; 0 for none.
        crop_area: Smallest share of its area that a random part of each image has, which is then
            resized to the whole; None for no such crop. Instead of ``crop_padding``.
        flip: Mirror half of the images left to right.
        mixup: Blend each image with another of its batch, all by one share, drawn from the Beta
            distribution with both parameters this; in ``(0, 1]``, None for no blends. Labels are
            then probabilities ``(batch, classes)``.
        classes: Number of classes, needed with ``mixup``.

    Raises:
        ConfigError: ``batch_size`` is below one or above the number of images, a crop or
            ``mixup`` is out of its range, or two kinds of crops are asked for.
    """

    def __init__(  # noqa: PLR0913 - how batches are drawn, all by name
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        crop_padding: int = 0,
        crop_area: float | None = None,
        flip: bool = False,
        mixup: float | None = None,
        classes: int | None = None,
    ) -> None:
        if not 1 <= batch_size <= len(split):
            raise ConfigError(
                f"BatchStream: batch_size={batch_size} does not fit {len(split)} images; "
                f"need 1 to {len(split)}; give a smaller batch_size or more images"
            )
        if crop_padding < 0:
            raise ConfigError(f"BatchStream: crop_padding={crop_padding} must not be negative")
        if crop_area is not None and not 0 < crop_area <= 1:
            raise ConfigError(f"BatchStream: crop_area={crop_area} must lie in (0, 1]")
        if crop_area is not None and crop_padding:
            raise ConfigError(
                f"BatchStream: got crop_padding={crop_padding} and crop_area={crop_area}, need "
                "one kind of crop; set the other to 0 or None"
            )
        if mixup is not None and not (0 < mixup <= 1 and classes):
            raise ConfigError(
                f"BatchStream: got mixup={mixup} and classes={classes}, need mixup in (0, 1] "
                "and the number of classes"
            )
        self._split = split
        self._batch_size = batch_size
        self._crop_padding = crop_padding
        self._crop_area = crop_area
        self._flip = flip
        self._mixup, self._classes = mixup, classes
        self._part = slice(None)
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the data."""
        return len(self._split) // self._batch_size

    def restrict_to(self, part: slice) -> None:
        """Give this part of each batch from now on; what is drawn is drawn for the whole batch."""
        self._part = part

    def next_batch(self) -> tuple[Float[Tensor, "batch c h w"], Targets]:
        """The next images ``(batch, c, h, w)`` as float32 and labels ``(batch,)``.

        With ``mixup`` probabilities ``(batch, classes)`` float32 in place of labels.
        """
        if self._position + self._batch_size > len(self._order):
            self._order = torch.randperm(len(self._split), generator=self._generator)
            self._position = 0
        chosen = self._order[self._position : self._position + self._batch_size]
        self._position += self._batch_size
        if self._mixup is None or self._classes is None:
            return self._augmented(chosen, self._part)
        others = torch.randperm(self._batch_size, generator=self._generator)
        share = mixup_share(self._mixup, generator=self._generator)
        pairs = torch.stack([torch.arange(self._batch_size), others])[:, self._part]
        needed, (own, other) = torch.unique(pairs, return_inverse=True)
        images, labels = self._augmented(chosen, needed)
        place = labels.device
        return blended(
            images, labels, own.to(place), other.to(place), share=share, classes=self._classes
        )

    def _augmented(
        self, chosen: Int64[Tensor, " whole"], part: Part
    ) -> tuple[Float[Tensor, "batch c h w"], Int64[Tensor, " batch"]]:
        """Some images of a batch; what is drawn is drawn for all of it."""
        chosen = chosen[part].to(self._split.labels.device)
        drawn: Any = {"generator": self._generator, "of": self._batch_size, "part": part}
        images = augment(
            self._split.images[chosen], crop_padding=self._crop_padding, flip=self._flip, **drawn
        )
        if self._crop_area is not None:
            images = resized_crop(images, min_area=self._crop_area, **drawn)
        return to_float(images), self._split.labels[chosen]

    def state_dict(self) -> dict[str, Any]:
        """Generator, order and position: tensors and plain numbers only."""
        return {
            "generator": self._generator.get_state(),
            "order": self._order.clone(),
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved stream stood.

        Raises:
            StateError: The state belongs to a data set of another size.
        """
        if len(state["order"]) not in (0, len(self._split)):
            raise StateError(
                f"BatchStream: the state orders {len(state['order'])} images, the data holds "
                f"{len(self._split)}; resume with the data the checkpoint was made with"
            )
        self._generator.set_state(state["generator"])
        self._order = state["order"].clone()
        self._position = int(state["position"])


def to_float(images: Num[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    """Float images: uint8 is mapped from [0, 255] to [-1, 1], floats are passed through."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(127.5).sub_(1.0)
    return images


def augment(
    images: Num[Tensor, "batch c h w"],
    *,
    crop_padding: int,
    flip: bool,
    generator: torch.Generator,
    of: int | None = None,
    part: Part = slice(None),
) -> Num[Tensor, "batch c h w"]:
    """Random crop after zero padding and random mirroring, each image by itself.

    Args:
        images: ``(batch, c, h, w)``, any dtype; not changed.
        crop_padding: Pixels added on each side; the crop has the old size. 0 for no crop.
        flip: Mirror each image left to right with probability one half.
        generator: CPU generator; draws are made on CPU, so they do not depend on the device.
        of: Images of the whole batch, for all of which is drawn; None where these are all.
        part: Which of them these are.

    Returns:
        Same shape and dtype.

    Raises:
        ShapeError: ``images`` is not four-dimensional.
    """
    if images.ndim != 4:
        raise ShapeError(f"augment: got shape {tuple(images.shape)}, need (batch, c, h, w)")
    batch, channels, height, width = images.shape
    drawn = batch if of is None else of
    if flip:
        mirrored = torch.rand(drawn, generator=generator)[part] < 0.5
        mirrored = mirrored.to(images.device)[:, None, None, None]
        images = torch.where(mirrored, images.flip(-1), images)
    if crop_padding:
        shift = torch.randint(0, 2 * crop_padding + 1, (2, drawn), generator=generator)[:, part]
        shift = shift.to(images.device)
        rows = shift[0, :, None] + torch.arange(height, device=images.device)
        columns = shift[1, :, None] + torch.arange(width, device=images.device)
        padded = F.pad(images, (crop_padding,) * 4)
        sample = torch.arange(batch, device=images.device)[:, None, None, None]
        channel = torch.arange(channels, device=images.device)[None, :, None, None]
        images = padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return images


def resized_crop(
    images: Num[Tensor, "batch c h w"],
    *,
    min_area: float,
    generator: torch.Generator,
    of: int | None = None,
    part: Part = slice(None),
) -> Num[Tensor, "batch c h w"]:
    """Random part of each image, resized to the size of the whole.

    The share of the area is uniform in ``[min_area, 1]``, the logarithm of width over height
    uniform between those of 3/4 and 4/3 (both relative to the image), sides that would pass the
    image are cut at it, and the place is uniform. Resizing only ever enlarges, so bilinear
    interpolation needs no smoothing.

    Args:
        images: ``(batch, c, h, w)``, uint8 or float; not changed.
        min_area: In ``(0, 1]``.
        generator: CPU generator; draws are made on CPU, so they do not depend on the device.
        of: Images of the whole batch, for all of which is drawn; None where these are all.
        part: Which of them these are.

    Returns:
        Same shape and dtype; bytes are rounded.

    Raises:
        ShapeError: ``images`` is not four-dimensional.
    """
    if images.ndim != 4:
        raise ShapeError(f"resized_crop: got shape {tuple(images.shape)}, need (batch, c, h, w)")
    batch, _, height, width = images.shape
    drawn = batch if of is None else of
    area, ratio, top, left = torch.rand(4, drawn, generator=generator)[:, part]
    area = min_area + (1 - min_area) * area
    ratio = torch.exp(_LOG_RATIO * (2 * ratio - 1))
    tall, wide = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    # grid_sample counts from -1 to 1 between the outer edges; this is where each part begins.
    begin = torch.stack([left * (1 - wide), top * (1 - tall)], dim=1) * 2 - 1
    scale = torch.stack([wide, tall], dim=1)
    rows = (torch.arange(height) * 2 + 1) / height
    columns = (torch.arange(width) * 2 + 1) / width
    grid = torch.empty(batch, height, width, 2)
    grid[..., 0] = (begin[:, 0, None] + scale[:, 0, None] * columns)[:, None, :]
    grid[..., 1] = (begin[:, 1, None] + scale[:, 1, None] * rows)[:, :, None]
    whole = images if images.is_floating_point() else images.float()
    grid = grid.to(images.device, whole.dtype)
    parts = F.grid_sample(whole, grid, padding_mode="border", align_corners=False)
    return parts if images.is_floating_point() else parts.round_().to(images.dtype)
