"""Coefficients of matrix iterations: each table with the recipe that makes it."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

Quintic = tuple[float, float, float]

# Steps of the default table, and the smallest singular value that they bring to one.
POLAR_EXPRESS_STEPS = 8
POLAR_EXPRESS_LOWER = 1e-3
# A step maps nothing of the interval below about a tenth of the largest value. Without that the
# optimal polynomials for a low end send other values nearly to zero, where rounding turns their
# directions: with 12 steps in float32, random 128x600, an error of 2.5e-4 against 2.9e-6. It
# costs little: the first slopes fall from 8.47 and 4.18 to 8.07 and 4.00.
CUSHION = 0.05
# A polynomial is steep where its interval ends, so what rounding puts beyond the end grows from
# step to step: without a margin rank-one matrices in float32 became NaN with 12 steps.
MARGIN = 1e-3

# `a x + b x^3 + c x^5`, one step after the other, made by greedy_quintics(1e-3, 8); a test makes
# them again. On [1e-3, 1] the distance to one falls as .992, .968, .875, .584, .141,
# 1.8e-3, 1.5e-8, 0.
POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.071751535089247, -21.89283791332296, 15.79157118158846),
    (4.002923373392362, -2.736302849214001, 0.49743925296900493),
    (3.8619902860138557, -2.705401266856098, 0.5040123808618506),
    (3.3686486252471397, -2.521070073812503, 0.5121395283308101),
    (2.34781771898525, -1.7084915513734067, 0.4218625479197666),
    (1.8957908638670735, -1.2719144756528975, 0.37634155850729084),
    (1.875, -1.25, 0.375),
    (1.875, -1.25, 0.375),
)

# What the best polynomial tends to as the interval closes around one: it agrees with 1 to third
# order there. In an interval this narrow the equations for the best one are nearly singular,
# and the limit is at most four times as far from one.
LIMIT: Quintic = (15 / 8, -10 / 8, 3 / 8)
_NARROW = 5e-3
# The exchange converges quadratically: six reach rounding from any low end with this cushion.
_EXCHANGES = 10
# No direction below it is told from rounding in float64.
_SMALLEST_LOWER = 1e-12


def greedy_quintics(lower: float, steps: int, *, cushion: float = CUSHION) -> tuple[Quintic, ...]:
    """Odd quintics whose composition brings ``[lower, 1]`` near to one.

    Each is the one nearest to one on the interval that those before it leave. Without cushion
    and margin this greedy choice is the best composition, too.

    Args:
        lower: In ``(0, 1)``.
        steps: How many polynomials.
        cushion: In ``[0, 1)``. A step is the best one from ``cushion`` times the top of its
            interval on, where the low end is further down; then it is centred around one.

    Returns:
        ``(a, b, c)`` of ``a x + b x^3 + c x^5`` for each step; ``LIMIT`` once the interval is
        narrow.

    Source:
        Amsel, Persson, Musco and Gower (2025), arXiv:2505.16932: greedy composition of best
        approximations by Remez' exchange, and the cushion. The numbers are our own.
    """
    made = []
    low, high = lower, 1.0
    for _ in range(steps):
        if high - low < _NARROW:
            made.append(LIMIT)
            continue
        high *= 1 + MARGIN
        (a, b, c), distance = best_quintic(max(low, cushion * high), high)
        # What the low end itself becomes, not 1 - distance, which would round a small one away.
        bottom, top = min(_value((a, b, c), low), 1 - distance), 1 + distance
        centre = (bottom + top) / 2
        made.append((a / centre, b / centre, c / centre))
        low, high = bottom / centre, top / centre
    return tuple(made)


def best_quintic(low: float, high: float) -> tuple[Quintic, float]:
    """The odd quintic nearest to one on ``[low, high]`` and its distance, by Remez' exchange.

    The best one is as far from one at four points, with alternating signs: the two ends and the
    two extrema that it has itself.
    """
    inner = [0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high]
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    for _ in range(_EXCHANGES):
        x = torch.tensor([low, *inner, high], dtype=torch.float64)
        equations = torch.stack([x, x**3, x**5, signs], dim=1)
        a, b, c, distance = torch.linalg.solve(equations, torch.ones_like(x)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner = [math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))]
    return (a, b, c), distance


def _value(quintic: Quintic, x: float) -> float:
    a, b, c = quintic
    return x * (a + x * x * (b + c * x * x))


@lru_cache(maxsize=64)
def polar_express(steps: int) -> tuple[Quintic, ...]:
    """Coefficients of Polar Express for a number of steps.

    Up to eight are the first of ``POLAR_EXPRESS``. More are made for a low end that falls by
    four a step, which is what the first steps raise it by.
    """
    if steps <= POLAR_EXPRESS_STEPS:
        return POLAR_EXPRESS[:steps]
    lower = POLAR_EXPRESS_LOWER * 4.0 ** (POLAR_EXPRESS_STEPS - steps)
    return greedy_quintics(max(lower, _SMALLEST_LOWER), steps)
