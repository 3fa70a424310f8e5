"""Sprites sample by sample, each shape as the guide states it: float64, no window, no batch."""

import math

import numpy as np
from matplotlib.path import Path

_t = np.linspace(0, 2 * math.pi, 4_001)
# The published curve, in the units of the canvas.
HEART = (
    np.stack(
        [
            9.579 * np.sin(_t) ** 3,
            -(8.617 * np.cos(_t) - 3.223 * np.cos(2 * _t) - 1.35 * np.cos(3 * _t))
            + 0.595 * np.cos(4 * _t)
            - 1.497,
        ],
        axis=1,
    )
    / 64
)


def inside(shape, points):
    """Which of the points ``(n, 2)`` lie in a shape of scale 1, upright, about the origin."""
    u, w = points.T
    if shape == 0:
        return np.maximum(np.abs(u), np.abs(w)) <= 0.15
    if shape == 1:
        return (u / 0.2) ** 2 + (w / 0.1125) ** 2 <= 1
    hit = np.abs(points).max(axis=1) <= np.abs(HEART).max()
    hit[hit] = Path(HEART).contains_points(points[hit])
    return hit


def sprite(size, samples, shape, scale, angle, x, y):
    """``(size, size)`` share of the samples of each pixel inside the shape."""
    side = (np.arange(size * samples) + 0.5) / (size * samples)
    dy, dx = np.meshgrid(side - (0.25 + 0.5 * y), side - (0.25 + 0.5 * x), indexing="ij")
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    local = np.stack([dx.ravel(), dy.ravel()], axis=1) @ turn.T / scale
    hit = inside(shape, local).reshape(size, samples, size, samples)
    return hit.mean(axis=(1, 3))


def heart_area():
    x, y = HEART.T
    return abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def largest_blob(mask):
    """Flood fill from every pixel; of equal blobs the one with the last pixel."""
    height, width = mask.shape
    seen = np.zeros_like(mask)
    best = (0, -1, np.zeros_like(mask))
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        blob, todo = np.zeros_like(mask), [start]
        seen[start] = True
        while todo:
            i, j = todo.pop()
            blob[i, j] = True
            for a in range(max(i - 1, 0), min(i + 2, height)):
                for b in range(max(j - 1, 0), min(j + 2, width)):
                    if mask[a, b] and not seen[a, b]:
                        seen[a, b] = True
                        todo.append((a, b))
        best = max(best, (blob.sum(), np.flatnonzero(blob)[-1], blob), key=lambda b: b[:2])
    return best[2]
