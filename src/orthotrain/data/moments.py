"""Moments of the largest blob of an image: where it is and how large, without a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from orthotrain._checks import require_finite
from orthotrain._doors import checked
from orthotrain.errors import ShapeError

# As many images of 64 pixels as stay in cache: 4,500 images per second on one thread, where a
# thousand at once make it 280.
_CHUNK = 16


@dataclass(frozen=True)
class SpriteMoments:
    """Area, centroid and second moments ``(n,)`` float64 each, on a canvas of side 1, y down.

    Attributes:
        area: Share of the canvas.
        x: Centroid from the left.
        y: Centroid from the top.
        major: Variance of the blob along its longest direction, the larger eigenvalue of its
            covariance; turning the blob does not change it.
        minor: Variance across.
    """

    area: Float[Tensor, " n"]
    x: Float[Tensor, " n"]
    y: Float[Tensor, " n"]
    major: Float[Tensor, " n"]
    minor: Float[Tensor, " n"]

    def stacked(self) -> Float[Tensor, "n 5"]:
        """All five as columns, in the order above: features for a predictor of factors."""
        return torch.stack([self.area, self.x, self.y, self.major, self.minor], dim=1)


@checked
def sprite_moments(
    images: Float[Tensor, "n c height width"], *, threshold: float = 0.5
) -> SpriteMoments:
    """Moments of the largest connected blob of each image.

    A generator's image has faint pixels all over, and second moments weigh them by their squared
    distance. So the brightest channel is cut at ``threshold``, and all but the largest blob is
    dropped; pixels that touch at a corner are connected, and of two equal blobs the one that
    holds the last pixel in reading order is kept. A pixel counts as a small square.

    Args:
        images: ``(n, c, height, width)`` in [0, 1], as ``Sprites`` gives them; map the output of
            a ``tanh`` there first. Any number of channels.
        threshold: Pixels above it belong to a blob.

    Returns:
        Float64 on the device of ``images``. An image without such a pixel has area and variances
        zero and its centroid in the middle.

    Raises:
        ShapeError: ``images`` is not four-dimensional, or has no channel or no pixel.
        ConfigError: ``images`` is not floating-point.
        NonFiniteError: ``images`` holds NaN or infinity.

    Note:
        Not differentiable: the threshold has no derivative.
    """
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ShapeError(
            f"sprite_moments: got shape {tuple(images.shape)}, need (n, c, height, width)"
        )
    require_finite("sprite_moments", "images", images)
    height, width = images.shape[2:]
    blob = largest_blob(images.amax(dim=1) > threshold).to(torch.float64)
    column = torch.arange(width, dtype=blob.dtype, device=blob.device)
    row = torch.arange(height, dtype=blob.dtype, device=blob.device)
    # Sums of whole numbers: exact in any order, so no image depends on those beside it.
    count, columns, rows = blob.sum(dim=(1, 2)), blob.sum(dim=1), blob.sum(dim=2)
    x, xx = columns @ column, columns @ column**2
    y, yy = rows @ row, rows @ row**2
    xy = torch.einsum("nij,i,j->n", blob, row, column)
    pixels = count.clamp(min=1)
    x_variance = ((pixels * xx - x**2) / pixels**2 + 1 / 12) / width**2
    y_variance = ((pixels * yy - y**2) / pixels**2 + 1 / 12) / height**2
    covariance = (pixels * xy - x * y) / pixels**2 / (width * height)
    middle = (x_variance + y_variance) / 2
    half_gap = torch.hypot((x_variance - y_variance) / 2, covariance)
    found = count > 0
    return SpriteMoments(
        area=count / (height * width),
        x=torch.where(found, (x / pixels + 0.5) / width, 0.5),
        y=torch.where(found, (y / pixels + 0.5) / height, 0.5),
        major=torch.where(found, middle + half_gap, 0.0),
        minor=torch.where(found, middle - half_gap, 0.0),
    )


def largest_blob(mask: Bool[Tensor, "n height width"]) -> Bool[Tensor, "n height width"]:
    """The largest set of pixels of each mask that are connected, corners included.

    Every pixel takes the largest label around it, then the label that the pixel of that number
    has by now, until nothing changes: the labels of a blob become the number of its last pixel.
    """
    if len(mask) > _CHUNK:
        return torch.cat([largest_blob(part) for part in torch.split(mask, _CHUNK)])
    n, height, width = mask.shape
    label = _blob_labels(mask).flatten(1)
    count = torch.zeros(n, height * width + 1, dtype=torch.int64, device=mask.device)
    count.scatter_add_(1, label, torch.ones_like(label))
    count[:, 0] = 0
    # Of equal counts the last: argmax does not promise which one it gives.
    order = torch.arange(height * width + 1, device=mask.device)
    kept = (count * (height * width + 1) + order).argmax(dim=1, keepdim=True)
    return mask & (label == kept).view_as(mask)


def _blob_labels(mask: Tensor) -> Int64[Tensor, "n height width"]:
    height, width = mask.shape[1:]
    number = torch.arange(1, height * width + 1, device=mask.device).view(height, width)
    label = torch.where(mask, number, 0)
    while True:
        padded = F.pad(label, (1, 1, 1, 1))
        across = torch.maximum(torch.maximum(padded[..., :-2], padded[..., 2:]), padded[..., 1:-1])
        around = torch.maximum(torch.maximum(across[:, :-2], across[:, 2:]), across[:, 1:-1])
        around = torch.where(mask, around, 0)
        table = F.pad(around.flatten(1), (1, 0))
        new = table.gather(1, around.flatten(1)).view_as(label)
        if torch.equal(new, label):
            return label
        label = new
