"""What the float64 Gram matrix of a large matrix tells, with no copy of the matrix in float64.

For looks at the weights of a model while it trains: one Gram matrix, some rows at a time, in place
of an SVD and a QR decomposition of a copy that is twice as large.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from orthotrain.linalg.decompose import widest_dtype

#: From this smaller side on a Gram matrix pays: below it a look costs next to nothing.
LARGE: Final = 128
#: Eigenvalues of a float64 Gram matrix are known to this share of the largest (measured: 15 eps),
#: so a singular value is known to ``1.7e-15 (s_0 / s_i)^2`` of itself.
NOISE: Final = 15 * torch.finfo(torch.float64).eps
#: Down to this share of the largest a singular value is right to .2 %.
LEAST_SHARE: Final = 1e-6

# Eigenvectors in float32 are taken where the eigenvalue is this share of the largest: they are
# known to 1e-6 over that share.
_ROUGH: Final = 1e-3
# Numbers that are widened at once: 2 MiB of float64.
_PART: Final = 2**18


def fits(a: Tensor) -> bool:
    """Whether ``(*batch, m, n)`` is large, and has fewer digits than its device's widest dtype."""
    narrow = a.dtype != torch.float64 and widest_dtype(a.device) == torch.float64
    return narrow and min(a.shape[-2:]) >= LARGE


def tall(a: Tensor) -> Tensor:
    """The matrix, or its transpose if it is wide."""
    return a if a.shape[-2] >= a.shape[-1] else a.mT


def gram_in_parts(a: Tensor, scale: Tensor | None = None) -> Tensor:
    """Lower triangle of ``a^T a`` in float64; above it zeros and products.

    Args:
        a: ``(m, n)``, tall.
        scale: Divides ``a`` first.
    """
    n = a.shape[-1]
    gram = a.new_zeros(n, n, dtype=torch.float64)
    bounds = [n * i // 4 for i in range(5)]
    for part in torch.split(a, max(1, _PART // n)):
        wide = part.double() if scale is None else part / scale
        for start, end in pairwise(bounds):
            gram[start:end, :end].addmm_(wide[:, start:end].T, wide[:, :end])
    return gram


def polar_and_triangle_by_gram(a: Tensor, *, rtol: float) -> tuple[Tensor, Tensor]:
    """Polar factor and ``R`` of a tall ``(m, n)``, both in float32, without gradient.

    Args:
        a: Finite, and ``fits``.
        rtol: At least ``LEAST_SHARE`` counts: directions below that share of the largest singular
            value cannot be told from null ones, and stay zero in the polar factor.

    Returns:
        ``q``, and ``r``, upper triangular with a diagonal that is not negative: that of ``a`` with
        singular values of ``1e-6`` of the largest added in null directions.
    """
    gram = gram_in_parts(a)
    largest = gram.diagonal().max()
    # Within the range of float32, whatever the scale of the weight.
    unit = torch.where(largest > 0, largest, 1.0)
    gram.tril_().div_(unit)
    gram += gram.tril(-1).T
    q = a.float() @ _inverse_root(gram, rtol).div_(unit.sqrt()).float()
    # The Cholesky factor needs what rounding may have taken from the least eigenvalue.
    gram.diagonal().add_(2 * NOISE * len(gram))
    factor, _ = torch.linalg.cholesky_ex(gram)
    return q, (factor * torch.where(largest > 0, unit.sqrt(), 0.0)).float().T


def _inverse_root(gram: Tensor, rtol: float) -> Tensor:
    """Inverse root of a symmetric matrix of norm one or more, zero in null directions; in float64.

    Eigenvectors in float32 take half of the time, and are right where the eigenvalue is not small.
    The few that are not are found anew, in float64, in the space they span. Their part of the root
    is large, and large directions see its rounding: it is multiplied in float64.
    """
    least = max(rtol, LEAST_SHARE) ** 2
    values, v = torch.linalg.eigh(gram.float())
    rough = int((values <= _ROUGH * values[-1]).sum())
    if 4 * rough > len(gram):
        values, v = torch.linalg.eigh(gram)
        whole: Tensor = (v * _inverse_roots(values, least * values[-1])) @ v.T
        return whole
    fine, few, fine_values = v[:, rough:], v[:, :rough].double(), values[rough:]
    root: Tensor = ((fine * fine_values.rsqrt()) @ fine.T).double()
    if not rough:
        return root
    # What of the fine ones is mixed into the few: their angle, to first order.
    angle = (fine.T @ (gram @ few).float()) / fine_values.unsqueeze(-1)
    few = torch.linalg.qr(few - (fine @ angle).double()).Q
    few_values, inner = torch.linalg.eigh(few.T @ (gram @ few))
    few = few @ inner
    return root.addmm_(few * _inverse_roots(few_values, least * values[-1]), few.T)


def _inverse_roots(values: Tensor, least: Tensor) -> Tensor:
    """Of eigenvalues; zero for those below ``least``."""
    kept = (values >= least) & (values > 0)
    roots: Tensor = torch.where(kept, values, 1.0).rsqrt() * kept
    return roots
