"""Polar factors of tall matrices by a decomposition: the SVD, or the Gram matrix."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from orthotrain._checks import require_finite
from orthotrain.errors import NumericalWarning
from orthotrain.linalg.decompose import LinAlgError, thin_svd
from orthotrain.linalg.rank import numerical_rank

PolarMethod = Literal["auto", "svd", "gram", "qdwh", "newton_schulz", "polar_express"]

# Eigenvalues of a Gram matrix are known to this many eps of the largest; measured up to 15.
_GRAM_NOISE = 256
# Half of a Gram matrix is enough for its eigenvectors. In four blocks it takes .68 of the time of
# the whole at 256x2304; below this size the calls cost more than the products.
_BLOCKED_FROM = 128
# A skinny matrix with more entries than the first is widened in parts of about the second, which
# stay in the cache: .5 to .6 of the time at 6x524288, no gain at 6x32768 (docs/log.md).
_WHOLE_UP_TO, _PART = 2**20, 2**16


@dataclass(frozen=True)
class Rule:
    """Route, working dtype, and what tells null and trusted directions apart."""

    method: PolarMethod
    dtype: torch.dtype
    resolution: float
    rtol: float
    complete: bool
    max_iters: int
    silent: bool

    @property
    def work_eps(self) -> float:
        """Rounding of the dtype in which it is computed."""
        return torch.finfo(self.dtype).eps

    @property
    def least(self) -> float:
        """Eigenvalues of a Gram matrix above this share of the largest are taken as they are.

        The entries of ``q^T q - 1`` are within ``(17 + 1.4 condition^2) eps``, whatever the
        spectrum, from 8x8 to 2304x256. So this keeps them within 1.4 eps of the result; typical
        is .05 of that.
        """
        return max(self.work_eps / self.resolution, self.rtol**2 + _GRAM_NOISE * self.work_eps)


class Route(NamedTuple):
    """Polar factor ``q`` of tall matrices and, where it is at hand, ``a^T a = v s^2 v^T``.

    ``kept`` tells which directions are not null: all of them where ``s`` is given without it.
    """

    q: Tensor
    v: Tensor | None = None
    s: Tensor | None = None
    kept: Tensor | None = None


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` laid out in memory as ``a`` is: a wide matrix comes in as a transposed view.

    At 256x2304 that takes .74 of the time of a result in the other layout.
    """
    return (b.mT.contiguous() @ a.mT).mT if a.stride(-2) < a.stride(-1) else a @ b


def svd_route(a: Tensor, rule: Rule) -> Route:
    """Right at any condition. Null directions stay zero, or take the SVD's vectors."""
    u, s, vh = thin_svd(a)
    rank = numerical_rank(s, rtol=rule.rtol).unsqueeze(-1)
    kept = (torch.arange(s.shape[-1], device=s.device) < rank) & (s > 0)
    given = kept | (s[..., :1] > 0) if rule.complete else kept
    return Route((u * given.unsqueeze(-2)) @ vh, vh.mT, s, kept)


def gram_route(a: Tensor, rule: Rule) -> Route:
    """Eigenvectors of ``a^T a``: as they are, refined, or the SVD, as each matrix asks for.

    ``a`` may have a lesser dtype than the rule, and then ``q`` may have it, too.
    """
    if len(_parts(a)) == 1 and a.dtype != rule.dtype:
        a = a.to(rule.dtype)
    try:
        eigenvalues, v = torch.linalg.eigh(lower_gram(a, rule.dtype))
    except LinAlgError:
        require_finite("polar_factor", "a", a)
        warnings.warn(
            f"polar_factor of shape {tuple(a.shape)}: eigh of the Gram matrix did not converge, "
            f"used the SVD",
            NumericalWarning,
            stacklevel=2,
        )
        return svd_route(a.to(rule.dtype), rule)
    noise = _GRAM_NOISE * rule.work_eps
    least = rule.least
    # Mostly all is well, and telling so is half of the time of a small one.
    if _all_above(eigenvalues, least):
        s = eigenvalues.sqrt()
        q = _rounded_product(a, (v / s.unsqueeze(-2)) @ v.mT)
        return Route(q, v, s)
    require_finite("polar_factor", "a", a)
    largest = eigenvalues[..., -1:]
    relative = eigenvalues / torch.where(largest > 0, largest, 1.0)
    kept = relative >= least
    null = (relative <= rule.rtol**2 - noise) | (largest == 0)
    settled = (kept | null).all(dim=-1)
    if rule.complete:
        settled &= kept.all(dim=-1) | (largest[..., 0] == 0)
    # What lies in the noise of the Gram matrix has no direction there that could be refined.
    hopeless = ((relative < noise) & ~null).any(dim=-1)
    if not bool(settled.any()) and settled.numel() > 0:
        return Route(_refined_or_svd(a.to(rule.dtype), v, rule, hopeless))
    s = eigenvalues.clamp(min=0).sqrt()
    inverse = torch.where(kept, 1 / s, 0.0)
    q = _rounded_product(a, (v * inverse.unsqueeze(-2)) @ v.mT)
    if bool(settled.all()):
        return Route(q, v, s, kept)
    # Boolean indexing takes out the chosen entries of any batch shape, a scalar one included.
    rest = ~settled
    q[rest] = _refined_or_svd(a[rest].to(rule.dtype), v[rest], rule, hopeless[rest]).to(q.dtype)
    return Route(q)


def _all_above(eigenvalues: Tensor, share: float) -> bool:
    """Whether the least eigenvalue of each matrix is above a share of the largest; NaN is not."""
    if eigenvalues.ndim == 1:
        values = eigenvalues.tolist()  # one reading in place of five operations
        return bool(values[0] > share * values[-1])
    return bool((eigenvalues[..., 0] > share * eigenvalues[..., -1]).all())


def lower_gram(a: Tensor, dtype: torch.dtype) -> Tensor:
    """``a^T a`` in ``dtype``; of a large one only the lower triangle, which ``eigh`` reads."""
    n = a.shape[-1]
    if n < _BLOCKED_FROM:
        products = (wide.mT @ wide for wide in _widened(a, dtype))
        return sum(products, start=next(products))
    gram = a.new_zeros(*a.shape[:-2], n, n, dtype=dtype)
    wide = a.to(dtype)
    for start, end in pairwise(n * part // 4 for part in range(5)):
        gram[..., start:end, :end] = wide[..., start:end].mT @ wide[..., :end]
    return gram


def _parts(a: Tensor) -> tuple[Tensor, ...]:
    """The rows of a tall matrix, all or in the parts in which it is widened."""
    m, n = a.shape[-2:]
    if n >= _BLOCKED_FROM or m * n <= _WHOLE_UP_TO:
        return (a,)
    # Whole cache lines: where a part starts within one, products take twice as long.
    return torch.split(a, _PART // n // 64 * 64, dim=-2)


def _widened(a: Tensor, dtype: torch.dtype) -> Iterable[Tensor]:
    return (a,) if a.dtype == dtype else (part.to(dtype) for part in _parts(a))


def _rounded_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the dtype of ``b``; where it goes by parts, rounded to that of ``a``."""
    if a.dtype == b.dtype:
        return product(a, b)
    parts = _parts(a)
    q = torch.empty_like(a)
    for part, into in zip(parts, _parts(q), strict=True):
        into.copy_(product(part.to(b.dtype), b))
    return q


def _refined_or_svd(a: Tensor, v: Tensor, rule: Rule, hopeless: Tensor) -> Tensor:
    """The refined Gram route for the matrices it can be trusted with, the SVD for the others."""
    if bool(hopeless.all()):
        q, trusted = torch.empty_like(a), ~hopeless
    else:
        q, trusted = _refined(a, v, rule)
    if bool(trusted.all()):
        return q
    rest = ~trusted
    if not rule.silent:
        warnings.warn(
            f"polar_factor: {int(rest.sum())} of {rest.numel()} matrices are too ill-conditioned "
            f"for their Gram matrix and took the SVD; method='auto' does so silently",
            NumericalWarning,
            stacklevel=2,
        )
    q[rest] = svd_route(a[rest], rule).q.to(q.dtype)
    return q


def _refined(a: Tensor, v: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    r"""Polar factor from ``a v``, and for which matrices it can be trusted.

    The columns of ``c = a v`` are orthogonal as far as the Gram matrix was right, and carry each
    singular value to its own rounding, which that matrix does not. With ``c = b diag(d)`` and
    ``b^T b = 1 + f`` the polar factor is ``b m v^T``, to first order in ``f``, with
    ``m_ij = -f_ij d_i / (d_i + d_j)`` off the diagonal. Between a kept and a null direction the
    differences are those of ``1 / d`` and zero. Measured over five shapes of spectrum, the error
    is at most ``3 condition eps`` and what is of second order, below ``|f|^2``. That is known,
    and kept below the rounding of the result, which for float32 holds up to condition 2e5 where
    half of the values are small, and to 5e5 and more elsewhere.
    """
    c = product(a, v)
    squares = lower_gram(c, c.dtype).tril()
    d = squares.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = torch.where(d > 0, d, 1.0)
    f = squares.tril(-1) / unit.unsqueeze(-1) / unit.unsqueeze(-2)
    f = f + f.mT
    largest = d.amax(dim=-1, keepdim=True)
    kept = (d >= rule.rtol * largest) & (d > 0)
    row, column = d.unsqueeze(-1), d.unsqueeze(-2)
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
    mixed = kept.unsqueeze(-1) ^ kept.unsqueeze(-2)
    # The angle by which the eigenvectors mix kept and null directions.
    angle = torch.where(mixed, f * row * column / (row.square() - column.square()), 0.0)
    second_order = (torch.where(both, f, angle)).square().sum(dim=(-2, -1))
    trusted = second_order <= rule.resolution
    if rule.complete or rule.rtol == 0:
        # The SVD has vectors for null directions, and tells a tiny one from zero.
        trusted &= kept.all(dim=-1) | (largest[..., 0] == 0)
    m = torch.diag_embed(kept.to(d.dtype))
    m = m - torch.where(both, f * row / (row + column), 0.0)
    m = m + torch.where(mixed & kept.unsqueeze(-1), angle, 0.0)
    m = m - torch.where(mixed & kept.unsqueeze(-2), angle * row / column, 0.0)
    return product(c, (m / unit.unsqueeze(-1)) @ v.mT), trusted
