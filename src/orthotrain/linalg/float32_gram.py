"""Singular values and vectors from a float32 Gram matrix, where that is exact enough to train on.

Half of the time of float64. A value ``s`` is known to about ``eps32 * s_0^2 / s``, so the road is
for matrices whose smallest singular value is not small. All others are refused with ``None``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.linalg._inputs import without_autocast

#: Below this share of the largest singular value the smallest one is left to float64.
SMALLEST_SHARE: Final = 0.05
# Of a side of 128 both roads take a millisecond.
_SMALLEST_SIDE: Final = 128
_POWER_ITERATIONS: Final = 8
# Of columns; outside, the squares of these would vanish or overflow.
_SQUARES: Final = (1e-14, 1e14)
_NEWTON_FROM: Final = 0.3


class RightVectors(NamedTuple):
    """What a square or tall matrix was decomposed into: its ``s`` and all of its ``vh``.

    Attributes:
        s: ``(*batch, n)`` from large to small.
        v: ``(*batch, n, n)``, singular vectors in columns, in the order of ``s``.
    """

    s: Tensor
    v: Tensor


@torch.no_grad()
def float32_values(
    a: Float[Tensor, "*batch m n"], *, digits: torch.dtype
) -> Float[Tensor, "*batch n"] | None:
    """Singular values from large to small in float64; None where float32 is not exact enough.

    Args:
        a: ``(*batch, m, n)`` with ``m >= n``, finite; the caller has checked.
        digits: The dtype whose digits the values of ``a`` have; ``a`` may have a wider one.

    Returns:
        Right to 2e-5 of the largest; measured 3e-6 for spectra that fall evenly, 1e-5 where half
        of the values lie together at ``SMALLEST_SHARE``.
    """
    with without_autocast(a):
        gram = _gram(a, digits)
        found = None if gram is None else torch.linalg.eigvalsh(gram)
    if found is None or not _apart(found):
        return None
    s: Tensor = found.flip(-1).double().sqrt()
    return s


@torch.no_grad()
def float32_right_vectors(
    a: Float[Tensor, "*batch m n"], *, digits: torch.dtype
) -> RightVectors | None:
    """The same with right singular vectors, orthonormal to 5e-6, for ``float32_factors``."""
    with without_autocast(a):
        gram = _gram(a, digits)
        if gram is None:
            return None
        eigenvalues, v = torch.linalg.eigh(gram)
    if not _apart(eigenvalues):
        return None
    return RightVectors(eigenvalues.flip(-1).double().sqrt(), v.flip(-1))


@torch.no_grad()
def float32_factors(
    a: Float[Tensor, "*batch m n"], known: RightVectors, k: int
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k n"]]:
    """``p, s, qh`` of rank ``k`` in float32, from what ``float32_right_vectors(a)`` gave.

    Their product is within 2e-5 of the largest singular value of ``a`` projected onto ``qh``, and
    1.0001 times as far from ``a`` as the nearest matrix at most. Measured 3e-6, and 1e-5 where half
    of the values lie together. ``p`` and ``qh`` are orthonormal to 5e-6.
    """
    v = known.v[..., :k]
    with without_autocast(a):
        p = a.float() @ v
        s = torch.linalg.vector_norm(p, dim=-2)
        p = p / s.unsqueeze(-2)
        if bool((s[..., -1] < _NEWTON_FROM * s[..., 0]).any()):
            # Columns lean by eps32 * s_0^2 / (s_i s_j); one step of Newton's method squares that.
            p = 1.5 * p - 0.5 * p @ (p.mT @ p)
    return p, s, v.mT


def _gram(a: Tensor, digits: torch.dtype) -> Tensor | None:
    """The float32 Gram matrix, where the smallest singular value is not small."""
    tall = a.shape[-2] >= a.shape[-1] >= _SMALLEST_SIDE
    if digits == torch.float64 or a.device.type != "cpu" or not tall:
        return None
    single = a.detach().float()
    gram = single.mT @ single
    squares = gram.diagonal(dim1=-2, dim2=-1).amax(-1)
    if not bool(((squares > _SQUARES[0]) & (squares < _SQUARES[1])).all()):
        return None
    # Settings of torch let products of float32 be rounded to bfloat16, which is four times as far.
    column = single.double().mT @ single[..., :1].double()
    off = (gram[..., :1] - column).abs().amax((-2, -1))
    bound = 4 * a.shape[-2] ** 0.5 * torch.finfo(torch.float32).eps
    if not bool((off < bound * squares).all()):
        return None
    shift = _largest(gram) * SMALLEST_SHARE**2
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    _, info = torch.linalg.cholesky_ex(gram - shift[..., None, None] * eye)
    return None if bool((info > 0).any()) else gram


def _largest(gram: Tensor) -> Tensor:
    """The largest eigenvalue from below, by a few power iterations."""
    x = gram.sum(-1, keepdim=True) + gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    for _ in range(_POWER_ITERATIONS):
        x = gram @ (x / torch.linalg.vector_norm(x, dim=-2, keepdim=True))
    largest: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1))
    return largest


def _apart(eigenvalues: Tensor) -> bool:
    """Whether the smallest of ascending eigenvalues is as large as promised."""
    return bool((eigenvalues[..., 0] > SMALLEST_SHARE**2 * eigenvalues[..., -1]).all())
