"""What a low-rank layer costs, in multiply-adds, and which contraction is the cheapest.

A weight ``u @ core @ vh`` (``m x k``, ``k x k``, ``k x n``) acts on ``rows`` inputs: tokens of
a linear layer, output positions of a convolution. With trained bases it is ``left @ right``
(``m x k``, ``k x n``). The counts leave out what is linear in the sizes (bias, casts).
``benchmarks/contraction.py`` and ``benchmarks/trained_factors.py`` compare them with measured
times.
"""

from __future__ import annotations

import math
from typing import Literal

from orthotrain._checks import require_count
from orthotrain._doors import checked
from orthotrain.layers._tracing import holds_for_sure

Form = Literal["factored", "materialized"]
Bases = Literal["frozen", "trained"]


def dense_cost(rows: int, m: int, n: int, *, training: bool = True) -> int:
    """Multiply-adds of the dense layer: forward, and in training both backward products."""
    return (3 if training else 1) * rows * m * n


def factored_cost(rows: int, m: int, n: int, k: int, *, training: bool = True) -> int:
    """Multiply-adds of ``((x vh^T) core^T) u^T``, the core folded where that is cheaper.

    Forward folds ``u @ core`` once there are more rows than ``m``; backward folds
    ``core @ vh`` once there are more rows than ``n``. The core's own gradient is the third
    ``k x k`` product.
    """
    forward = rows * k * (m + n) + k * k * min(rows, m)
    if not training:
        return forward
    return forward + rows * k * (m + n) + k * k * min(rows, n) + rows * k * k


def materialized_cost(rows: int, m: int, n: int, k: int, *, training: bool = True) -> int:
    """Multiply-adds of building the ``m x n`` weight and using it as a dense one."""
    build = m * k * k + m * k * n
    return dense_cost(rows, m, n, training=training) + (2 if training else 1) * build


def cheapest_form(rows: int, m: int, n: int, k: int, *, training: bool = True) -> Form:
    """The contraction with the lower count; ``"factored"`` where they are equal.

    Also where a compiled graph is to hold for every rank, which then is a symbol.
    """
    factored = factored_cost(rows, m, n, k, training=training)
    built = materialized_cost(rows, m, n, k, training=training)
    return "materialized" if holds_for_sure(built < factored) else "factored"


def cheapest_pair_form(rows: int, m: int, n: int, k: int, *, training: bool = True) -> Form:
    """``cheapest_form`` of a weight ``left @ right`` whose factors are both trained."""
    passes = 3 if training else 1
    built = dense_cost(rows, m, n, training=training) + passes * m * k * n
    return "materialized" if holds_for_sure(built < passes * rows * k * (m + n)) else "factored"


@checked
def break_even_fraction(m: int, n: int) -> float:
    """Rank as a fraction of ``min(m, n)`` below which a factored layer trains faster than dense.

    Root of ``3 r^2 + 2 (a + 1) r = 3 a`` with ``a = max(m, n) / min(m, n)``: the count of
    ``factored_cost`` with no folding, so it holds for any number of rows. At least 0.535
    (square), above one from ``a = 5`` on.

    >>> round(break_even_fraction(768, 768), 3), round(break_even_fraction(3072, 768), 3)
    (0.535, 0.937)
    """
    require_count("break_even_fraction", "m", m)
    require_count("break_even_fraction", "n", n)
    a = max(m, n) / min(m, n)
    return (math.sqrt((a + 1) ** 2 + 9 * a) - (a + 1)) / 3


@checked
def stored_numbers(m: int, n: int, k: int, *, bases: Bases = "frozen") -> int:
    """Numbers that ``u``, ``core`` and ``vh`` hold together; of trained bases, both factors.

    Trained factors take fewer multiply-adds than the dense layer wherever they hold fewer numbers.
    """
    return k * (m + n + k) if bases == "frozen" else k * (m + n)
