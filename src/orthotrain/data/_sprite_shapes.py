"""Square, ellipse and heart: which share of each pixel of a small canvas they cover."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

# The geometry below was fitted to the published animation of the factor grid; canvas side 1,
# y down, shapes at scale 1. Mean intersection over union with its frames: .9995 for the square,
# .995 for the ellipse, .996 for the heart.
SQUARE_HALF_SIDE = 0.15
ELLIPSE_HALF_AXES = (0.2, 0.1125)
# The heart is the curve x = a sin^3 t, y = -(b1 cos t + b2 cos 2t + b3 cos 3t + b4 cos 4t) - y0
# in 64ths of the canvas.
HEART_UNIT = 1 / 64
HEART_WIDTH = 9.579
HEART_COSINES = (8.617, -3.223, -1.35, -0.595)
HEART_OFFSET = 1.497
# The corner of the square reaches furthest of the three.
REACH = SQUARE_HALF_SIDE * math.sqrt(2)
# Positions 0 to 1 are centres from .25 to .75, so no shape at scale 1 touches the border.
CENTRE_LOW, CENTRE_SPAN = 0.25, 0.5
# As many images as keep the float64 samples of one shape in cache, measured at 64 pixels.
_CHUNK = 32


def coverage(
    pose: Float64[Tensor, "n 5"], *, size: int, samples: int
) -> Float[Tensor, "n size size"]:
    """Share of the samples of each pixel that lie inside the shape.

    A pixel has ``samples**2`` samples, the centres of as many equal squares; with one sample
    this is the pixel-centre rule, and every value is 0 or 1.

    Args:
        pose: Shape (0 square, 1 ellipse, 2 heart), scale in (0, 1], angle in radians, and
            position x and y in [0, 1].
        size: Side of the canvas in pixels.
        samples: Samples per pixel along one side.

    Returns:
        Float32 on the device of ``pose``. An image depends on its own row alone.
    """
    images = torch.zeros(len(pose), size, size, device=pose.device)
    for part, image in zip(torch.split(pose, _CHUNK), torch.split(images, _CHUNK), strict=True):
        _draw_(image, part, samples)
    return images


def _draw_(images: Tensor, pose: Tensor, samples: int) -> None:
    """Draw into empty images; only a window around each centre is looked at."""
    size = images.shape[-1]
    window = min(size, math.ceil(2 * REACH * size) + 1)
    shape, scale, angle = pose[:, 0], pose[:, 1, None], pose[:, 2, None]
    centre = CENTRE_LOW + CENTRE_SPAN * pose[:, 3:]
    first = ((centre - REACH) * size).floor().clamp(0, size - window)
    step = torch.arange(window * samples, dtype=pose.dtype, device=pose.device)
    place = (first[..., None] + (step + 0.5) / samples) / size
    dx, dy = ((place - centre[..., None]) / scale[..., None]).unbind(1)
    cos, sin = angle.cos(), angle.sin()
    inside = torch.empty(len(pose), len(step), len(step), dtype=torch.bool, device=pose.device)
    for kind, rule in enumerate((_in_square, _in_ellipse, _in_heart)):
        chosen = (shape == kind).nonzero().flatten()
        u = (cos * dx)[chosen, None, :] - (sin * dy)[chosen, :, None]
        w = (sin * dx)[chosen, None, :] + (cos * dy)[chosen, :, None]
        inside[chosen] = rule(u, w)
    share = F.avg_pool2d(inside[:, None].to(images.dtype), samples)[:, 0]
    columns, rows = _window(first, window).unbind(1)
    image = torch.arange(len(pose), device=pose.device)[:, None, None]
    images[image, rows[:, :, None], columns[:, None, :]] = share


def _window(first: Tensor, window: int) -> Int64[Tensor, "n 2 window"]:
    return first.to(torch.int64)[..., None] + torch.arange(window, device=first.device)


def _in_square(u: Tensor, w: Tensor) -> Bool[Tensor, "n h w"]:
    return (u.abs() <= SQUARE_HALF_SIDE) & (w.abs() <= SQUARE_HALF_SIDE)


def _in_ellipse(u: Tensor, w: Tensor) -> Bool[Tensor, "n h w"]:
    major, minor = ELLIPSE_HALF_AXES
    return (u / major) ** 2 + (w / minor) ** 2 <= 1


def _in_heart(u: Tensor, w: Tensor) -> Bool[Tensor, "n h w"]:
    """Between the two points of the curve that share an ``x``, those at ``t`` and ``pi - t``.

    ``sin^3 t = x / a`` gives ``cos^2 t = 1 - (x / a)^(2/3)``. Cosines of odd multiples of ``t``
    change sign between the two points, those of even multiples do not, so ``y`` is a middle
    plus or minus half a height, both polynomials in ``cos t``.
    """
    b1, b2, b3, b4 = HEART_COSINES
    square = 1 - (u.abs() / (HEART_UNIT * HEART_WIDTH)).pow(2 / 3)
    half_height = square.clamp(min=0).sqrt() * (b1 - 3 * b3 + 4 * b3 * square)
    middle = -(b2 * (2 * square - 1) + b4 * (8 * square**2 - 8 * square + 1)) - HEART_OFFSET
    return (square >= 0) & ((w / HEART_UNIT - middle).abs() <= half_height)
