"""Pairs of uniform numbers with a chosen correlation."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor


def correlated_uniforms(n: int, *, r: float, generator: torch.Generator) -> Float64[Tensor, "n 2"]:
    """Gaussian copula: each number uniform in [0, 1], Pearson correlation ``r`` between them.

    Normal numbers with correlation ``rho`` have, after the normal distribution function,
    correlation ``6 / pi asin(rho / 2)``; this is solved for ``rho``.

    Args:
        n: Number of pairs.
        r: In [-1, 1].
        generator: CPU generator.

    Source:
        Kruskal (1958), Ordinal Measures of Association, JASA 53(284).
    """
    rho = 2 * math.sin(math.pi * r / 6)
    one, other = torch.randn(2, n, dtype=torch.float64, generator=generator)
    # Rounding takes rho of +-1 past one.
    other = rho * one + math.sqrt(max(0.0, 1 - rho**2)) * other
    uniform: Tensor = torch.special.ndtr(torch.stack([one, other], dim=1))
    return uniform
