"""Mixup: each image blended with another of its batch, and its label with that one's."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from orthotrain.errors import ConfigError, ShapeError


def mixup(
    images: Float[Tensor, "batch c h w"],
    labels: Int64[Tensor, " batch"],
    own: Int64[Tensor, " k"],
    other: Int64[Tensor, " k"],
    *,
    share: float,
    classes: int,
) -> tuple[Float[Tensor, "k c h w"], Float[Tensor, "k classes"]]:
    """Blends of images, and the probability of each class.

    Args:
        images: ``(batch, c, h, w)``, floats; not changed.
        labels: ``(batch,)``, class of each image.
        own: ``(k,)``, index of an image per blend.
        other: ``(k,)``, index of the image that is blended into it.
        share: Weight of the first of the two, in ``[0, 1]``; the other has the rest.
        classes: Number of classes.

    Returns:
        Images ``(k, c, h, w)`` of the same dtype, and probabilities ``(k, classes)`` float32,
        which ``cross_entropy`` takes in place of labels.

    Raises:
        ShapeError: As many labels as images, or as many others, are not given.

    Source:
        Zhang, Cisse, Dauphin and Lopez-Paz (2018), arXiv:1710.09412.
    """
    if len(images) != len(labels) or len(own) != len(other):
        raise ShapeError(
            f"mixup: got {len(labels)} labels of {len(images)} images, and {len(other)} others of "
            f"{len(own)} blends; need one each"
        )
    hot = F.one_hot(labels, classes).to(torch.float32)
    return images[own].lerp(images[other], 1 - share), hot[own].lerp(hot[other], 1 - share)


def mixup_share(alpha: float, *, generator: torch.Generator) -> float:
    """A share drawn from the Beta distribution with both parameters ``alpha``.

    Args:
        alpha: In ``(0, 1]``; the smaller, the nearer to 0 or 1 are the shares.
        generator: CPU generator.

    Raises:
        ConfigError: ``alpha`` is out of range.

    Source:
        Joehnk (1964), Metrika 8: with ``x`` and ``y`` uniform to the power ``1 / alpha``,
        ``x / (x + y)`` given ``x + y <= 1``.
    """
    if not 0 < alpha <= 1:
        raise ConfigError(f"mixup: alpha={alpha} must lie in (0, 1]")
    while True:
        uniform = torch.rand(2, generator=generator, dtype=torch.float64)
        x, y = (uniform ** (1 / alpha)).tolist()
        if 0 < x + y <= 1:
            return float(x / (x + y))
