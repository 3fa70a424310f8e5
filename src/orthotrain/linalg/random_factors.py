"""Factors of a random matrix without the matrix: vectors are uniform, values are known."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.linalg._inputs import result_dtype, without_autocast

_POINTS: Final = 2049


@torch.no_grad()
def random_factors_like(
    a: Float[Tensor, "*batch m n"], k: int
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k n"]]:
    """``u, s, vh`` distributed as those of the best rank-``k`` part of a random matrix like ``a``.

    The singular vectors of a matrix with independent Gaussian entries are uniformly distributed:
    ``u`` and ``vh`` are the ``Q`` of two Gaussian matrices. Its singular values tend to the
    quantiles of the law of Marchenko and Pastur, which are taken for ``s``. For independent
    entries of any other law with mean zero both hold in the limit of large sizes.

    Args:
        a: ``(*batch, m, n)``: sizes, dtype, device, and the mean square of entries in each matrix.
        k: From 1 to ``min(m, n)``.

    Returns:
        In float32, or float64 for float64, drawn by the default generator of the device. With
        ``k = min(m, n)`` the product has the Frobenius norm of ``a``.

    Source:
        Marchenko and Pastur (1967), Mathematics of the USSR-Sbornik 1(4). Uniform ``Q``: Stewart
        (1980), SIAM J. Numer. Anal. 17(3).
    """
    *batch, m, n = a.shape
    dtype = result_dtype(a.dtype)
    with without_autocast(a):
        u, v = (
            _uniform_basis(torch.randn(*batch, side, k, dtype=dtype, device=a.device))
            for side in (m, n)
        )
    size = torch.linalg.vector_norm(a, dim=(-2, -1), dtype=dtype)
    values = random_singular_values(m, n)
    share = (values / torch.linalg.vector_norm(values))[:k].to(a.device, dtype)
    return u, size.unsqueeze(-1) * share, v.mT


def random_singular_values(m: int, n: int) -> Float[Tensor, " r"]:
    """``(min(m, n),)`` quantiles of the singular values of an ``m x n`` matrix, large to small.

    Entries are independent, of mean zero and variance one. In float64.
    """
    small, large = sorted((m, n))
    y = small / large
    theta = np.linspace(0.0, math.pi, _POINTS)
    # Squared singular values over the larger side, from large to small, and their density there.
    squares = 1 + y + 2 * math.sqrt(y) * np.cos(theta)
    density = np.sin(theta) ** 2 / np.maximum(squares, np.finfo(float).tiny)
    density[-1] = 0.0  # of a square matrix zero over zero; one of many points
    reached = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    middle = (np.arange(small) + 0.5) / small
    found = np.interp(middle, reached / reached[-1], np.sqrt(squares.clip(min=0)))
    return torch.from_numpy(found * math.sqrt(large))


def _uniform_basis(gaussian: Tensor) -> Tensor:
    """Uniformly distributed: with the signs that make the diagonal of ``R`` positive."""
    q, r = torch.linalg.qr(gaussian)
    uniform: Tensor = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)
    return uniform
