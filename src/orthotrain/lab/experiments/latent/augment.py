"""Differentiable augmentation whose parameters are drawn once and applied to real and fake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from orthotrain.errors import ShapeError

# Shares of the side, of Zhao et al. (2020).
_LARGEST_SHIFT = 0.125
_HOLE = 0.5


@dataclass(frozen=True)
class Augmentation:
    """One drawn augmentation of ``n`` images. Made by :func:`draw_augmentation`; call it on images.

    Calling it on two batches does the same to both: image ``i`` of each is changed alike.

    Attributes:
        brightness: ``(n,)``, added. 0 changes nothing.
        saturation: ``(n,)``, factor of the distance from the mean over channels. 1 changes nothing.
        contrast: ``(n,)``, factor of the distance from the image's mean. 1 changes nothing.
        shift: ``(n, 2)``, pixels down and to the right; what comes in is zero.
        hole: ``(n, 2)``, top and left of the part set to zero, perhaps in part outside.
        hole_size: ``(n, 2)``, its height and width.
        size: Height and width of the images.
    """

    brightness: Float[Tensor, " n"]
    saturation: Float[Tensor, " n"]
    contrast: Float[Tensor, " n"]
    shift: Int[Tensor, "n 2"]
    hole: Int[Tensor, "n 2"]
    hole_size: Int[Tensor, "n 2"]
    size: tuple[int, int]

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The augmented images, of the same shape and dtype.

        In this order: brightness, saturation, contrast, translation, cutout. Affine in the images,
        so differentiable any number of times; each image for itself.

        Raises:
            ShapeError: Images of another number or size than it was drawn for.
        """
        h, w = self.size
        if images.ndim != 4 or (len(images), *images.shape[2:]) != (len(self.brightness), h, w):
            raise ShapeError(
                f"Augmentation: got images {tuple(images.shape)}, was drawn for "
                f"({len(self.brightness)}, c, {h}, {w}); draw one for their shape"
            )
        x = images + _per_image(self.brightness, images)
        grey = x.mean(dim=1, keepdim=True)
        x = grey + (x - grey) * _per_image(self.saturation, images)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = mean + (x - mean) * _per_image(self.contrast, images)
        return self._cut(self._shifted(x))

    def _shifted(self, x: Tensor) -> Tensor:
        h, w = self.size
        shift = self.shift.to(x.device)
        # Every pixel of the padded image is read once at most, so the backward pass adds no two
        # numbers in an order of its own, and a run can be repeated bit for bit.
        reach = [_shift_of(side) for side in (h, w)]
        x = F.pad(x, (reach[1], reach[1], reach[0], reach[0]))
        rows = torch.arange(h, device=x.device) + reach[0] - shift[:, :1]
        columns = torch.arange(w, device=x.device) + reach[1] - shift[:, 1:]
        x = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        return x.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], h, -1))

    def _cut(self, x: Tensor) -> Tensor:
        inside = [
            (place >= first[:, None]) & (place < (first + size)[:, None])
            for place, first, size in zip(
                (torch.arange(side, device=x.device) for side in x.shape[2:]),
                self.hole.to(x.device).unbind(1),
                self.hole_size.to(x.device).unbind(1),
                strict=True,
            )
        ]
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return x * ~hole


def draw_augmentation(shape: Sequence[int], *, generator: torch.Generator) -> Augmentation:
    """Draw the parameters of DiffAugment for a batch of images.

    =========== ==================================================================
    brightness  uniform in [-0.5, 0.5), for images in [-1, 1] a quarter of the range
    saturation  uniform in [0, 2)
    contrast    uniform in [0.5, 1.5)
    shift       whole pixels, uniform up to an eighth of the side each way
    hole        half as high and wide as the image, its centre uniform over it
    =========== ==================================================================

    Give the result to the discriminator's input for real and generated images alike, of one step
    and, where the generator trains through it, of its own::

        augmentation = draw_augmentation(real.shape, generator=random)
        real_logits = discriminator(augmentation(real))
        fake_logits = discriminator(augmentation(fake))

    Args:
        shape: ``(n, c, h, w)`` of the images.
        generator: Source of all numbers.

    Returns:
        The augmentation, on the generator's device.

    Source:
        Zhao et al. (2020), arXiv:2006.10738. The code around EigenGAN augments with probability
        0.6, drawn for a whole batch, and anew for real and generated images.
    """
    n, _, *sides = shape
    # Five more than are used: recorded runs drew them, and a seed still gives the same run.
    uniform, _ = (torch.rand(k, n, generator=generator, device=generator.device) for k in (7, 5))

    def whole(index: int, low: int, count: int) -> Tensor:
        """``low`` to ``low + count - 1``; float32 may round the product up to ``count``."""
        steps: Tensor = (uniform[index] * count).long().clamp(max=count - 1)
        return low + steps

    shifts = [
        whole(3 + i, -_shift_of(side), 2 * _shift_of(side) + 1) for i, side in enumerate(sides)
    ]
    sizes = [int(side * _HOLE + 0.5) for side in sides]
    # The centre is a pixel for an odd hole and a corner of pixels for an even one.
    holes = [
        whole(5 + i, -(size // 2), side + 1 - size % 2)
        for i, (side, size) in enumerate(zip(sides, sizes, strict=True))
    ]
    return Augmentation(
        brightness=uniform[0] - 0.5,
        saturation=uniform[1] * 2,
        contrast=uniform[2] + 0.5,
        shift=torch.stack(shifts, dim=1),
        hole=torch.stack(holes, dim=1),
        hole_size=torch.tensor(sizes, device=generator.device).expand(n, 2),
        size=(sides[0], sides[1]),
    )


def _shift_of(side: int) -> int:
    """Largest shift in pixels."""
    return int(side * _LARGEST_SHIFT + 0.5)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images).view(-1, 1, 1, 1)
