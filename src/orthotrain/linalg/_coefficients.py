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
# costs little: the first slopes fall from 8.47 and 4.18 to 8.08 and 4.01.
CUSHION = 0.05

# `a x + b x^3 + c x^5`, one step after the other, made by greedy_quintics(1e-3, 8); a test makes
# them again. On [1e-3, 1] the distance to one falls as .992, .968, .875, .584, .141,
# 1.8e-3, 1.4e-8, 0.
POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.07979067785854, -21.958493506439524, 15.870623059861604),
    (4.006812958860945, -2.744464491613968, 0.49992535819334627),
    (3.8652546986690317, -2.7132815271119965, 0.5065246709161966),
    (3.369194269232812, -2.5262314532673082, 0.5143255281940619),
    (2.346535368436318, -1.7097775684922898, 0.42323493956157093),
    (1.896345789018877, -1.2735184447540489, 0.3773595143038211),
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

    Each is the one nearest to one on the interval that those before it leave; without a cushion
    this greedy choice is also the best composition.

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
