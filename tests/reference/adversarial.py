"""Slow float64 twins of augmentation and slope penalties: one image, one pixel, one formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def colour(image: Tensor, *, brightness: float, saturation: float, contrast: float) -> Tensor:
    """``(c, h, w)``: brightness, then saturation, then contrast."""
    channels, height, width = image.shape
    out = image.double() + brightness
    for y in range(height):
        for x in range(width):
            grey = sum(float(out[c, y, x]) for c in range(channels)) / channels
            for c in range(channels):
                out[c, y, x] = grey + saturation * (float(out[c, y, x]) - grey)
    mean = float(out.sum()) / out.numel()
    return mean + contrast * (out - mean)


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """Each pixel goes ``down`` and ``right``; what comes in is zero."""
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                out[:, y, x] = image[:, y - down, x - right]
    return out


def cut(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    out = image.clone()
    for y in range(top, top + height):
        for x in range(left, left + width):
            if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                out[:, y, x] = 0
    return out


def slope_norms(critic: Callable[[Tensor], Tensor], images: Tensor, step: float) -> list[float]:
    """``|d critic / d image|`` of each image by central differences, one number at a time."""
    norms = []
    for image in images:
        total = 0.0
        for place in range(image.numel()):
            ends = []
            for sign in (1, -1):
                nudged = image.clone()
                nudged.view(-1)[place] += sign * step
                ends.append(float(critic(nudged[None])[0]))
            total += ((ends[0] - ends[1]) / (2 * step)) ** 2
        norms.append(total**0.5)
    return norms


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
