"""Polar factors of tall matrices by a decomposition: the SVD, or the Gram matrix."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from itertools import product as places
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
# Eigenvectors of a Gram matrix are good enough for a refinement while the smallest eigenvalue is
# above the first share of the largest. Beyond, those below the second share get a Gram matrix of
# their own. With the singular values s of the border and t of the smallest, what is left is of the
# order of eps / (s t) between the two sets and of eps s^2 / t^2 within the small one.
RESOLVED, SMALL = 4e-11, 1e-6
# Half of a Gram matrix is enough for its eigenvectors. In four blocks it takes .68 of the time of
# the whole at 256x2304; below this size the calls cost more than the products.
BLOCKED_FROM = 128
# A skinny matrix with more entries than the first is widened in parts of about the second, which
# stay in the cache: .5 to .6 of the time at 6x524288, no gain at 6x32768 (docs/log.md).
_WHOLE_UP_TO, _PART = 2**20, 2**16
# The inverse root is symmetric: from here on half of it is computed, .74 of the time at 768.
_HALVED_FROM = 384
# Rounding of a Gram matrix grows with the rows of one product: at 6x32768 it is ten times that of a
# few hundred. So of more rows than the first the second number is taken at once.
ROWS_AT_ONCE, _ROWS_OF_A_PART = 2304, 2048


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
    def null_share(self) -> float:
        """Directions whose eigenvalue is at most this share of the largest are null for certain."""
        return self.rtol**2 - _GRAM_NOISE * self.work_eps

    @property
    def least_share(self) -> float:
        """Eigenvalues of ``a^T a`` above this share of the largest are taken as they are.

        The entries of ``q^T q - 1`` are within ``(17 + 1.4 condition^2) eps``, whatever the
        spectrum, from 8x8 to 2304x256. So this keeps them within 1.4 eps of the result; typical
        is .05 of that. More rows change nothing, since they are summed in parts.
        """
        rounding = self.work_eps / self.resolution
        return max(rounding, self.rtol**2 + _GRAM_NOISE * self.work_eps)


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
    if a.dtype != rule.dtype and not goes_by_parts(*a.shape[-2:]):
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
    # Mostly all is well.
    if bool((eigenvalues[..., 0] > rule.least_share * eigenvalues[..., -1]).all()):
        return Route(_rounded_product(a, inverse_root(eigenvalues, v)), v, eigenvalues.sqrt())
    return unsettled(a, eigenvalues, v, rule)


def unsettled(a: Tensor, eigenvalues: Tensor, v: Tensor, rule: Rule) -> Route:
    """What each matrix takes where some have small or null directions, or are not finite."""
    require_finite("polar_factor", "a", a)
    largest = eigenvalues[..., -1:]
    relative = eigenvalues / torch.where(largest > 0, largest, 1.0)
    kept = relative >= rule.least_share
    null = (relative <= rule.null_share) | (largest == 0)
    settled = (kept | null).all(dim=-1)
    # Only the SVD has vectors for null directions.
    incomplete = null.any(dim=-1) & (largest[..., 0] > 0) & rule.complete
    settled &= ~incomplete
    if not bool(settled.any()) and settled.numel() > 0:
        return Route(_refined_or_svd(a.to(rule.dtype), v, relative, incomplete, rule))
    s = eigenvalues.clamp(min=0).sqrt()
    inverse = torch.where(kept, 1 / s, 0.0)
    q = _rounded_product(a, (v * inverse.unsqueeze(-2)) @ v.mT)
    if bool(settled.all()):
        return Route(q, v, s, kept)
    # Boolean indexing takes out the chosen entries of any batch shape, a scalar one included.
    rest = ~settled
    others = (v[rest], relative[rest], incomplete[rest])
    q[rest] = _refined_or_svd(a[rest].to(rule.dtype), *others, rule).to(q.dtype)
    return Route(q)


def lower_gram(a: Tensor, dtype: torch.dtype) -> Tensor:
    """``a^T a`` in ``dtype``; of a large one only the lower triangle, which ``eigh`` reads."""
    m, n = a.shape[-2:]
    if a.dtype != dtype and goes_by_parts(m, n):
        products = (_small_gram(part.to(dtype)) for part in _parts(a))
        return sum(products, start=next(products))
    wide = a if a.dtype == dtype else a.to(dtype)
    if n < BLOCKED_FROM:
        return _small_gram(wide)
    gram = a.new_zeros(*a.shape[:-2], n, n, dtype=dtype)
    for rows in (wide,) if m <= ROWS_AT_ONCE else torch.split(wide, _ROWS_OF_A_PART, dim=-2):
        for start, end in _quarters(n):
            # Not addmm_, which rounds the whole sum for each few hundred rows.
            gram[..., start:end, :end] += rows[..., start:end].mT @ rows[..., :end]
    return gram


def _small_gram(a: Tensor) -> Tensor:
    """``a^T a`` of a tall matrix with few columns."""
    *batch, m, n = a.shape
    if m <= ROWS_AT_ONCE:
        return a.mT @ a
    whole = m - m % _ROWS_OF_A_PART
    parts = a[..., :whole, :].reshape(*batch, whole // _ROWS_OF_A_PART, _ROWS_OF_A_PART, n)
    gram = torch.sum(parts.mT @ parts, dim=-3)
    return gram if whole == m else gram + a[..., whole:, :].mT @ a[..., whole:, :]


def gram_matrix(a: Tensor) -> Tensor:
    """``a^T a``, both triangles."""
    gram = lower_gram(a, a.dtype)
    return gram if a.shape[-1] < BLOCKED_FROM else gram.tril() + gram.tril(-1).mT


def inverse_root(eigenvalues: Tensor, v: Tensor) -> Tensor:
    """``v diag(eigenvalues)^(-1/2) v^T``; ``v`` may have fewer columns than rows."""
    n = v.shape[-2]
    if n < _HALVED_FROM:
        return (v * eigenvalues.rsqrt().unsqueeze(-2)) @ v.mT
    half = v * eigenvalues.pow(-0.25).unsqueeze(-2)
    root = half.new_empty(*half.shape[:-1], n)
    for start, end in _quarters(n):
        rows = half[..., start:end, :] @ half[..., :end, :].mT
        root[..., start:end, :end] = rows
        root[..., :start, start:end] = rows[..., :start].mT
    return root


def _quarters(n: int) -> Iterator[tuple[int, int]]:
    return pairwise(n * part // 4 for part in range(5))


def goes_by_parts(m: int, n: int) -> bool:
    """Whether a tall matrix is skinny and large, so that it is widened in parts."""
    return n < BLOCKED_FROM and m * n > _WHOLE_UP_TO


def _parts(a: Tensor) -> tuple[Tensor, ...]:
    # Whole cache lines: where a part starts within one, products take twice as long.
    return torch.split(a, _PART // a.shape[-1] // 64 * 64, dim=-2)


def _rounded_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the dtype of ``b``; where it goes by parts, rounded to that of ``a``."""
    if a.dtype == b.dtype:
        return product(a, b)
    q = torch.empty_like(a)
    for part, into in zip(_parts(a), _parts(q), strict=True):
        into.copy_(product(part.to(b.dtype), b))
    return q


def _refined_or_svd(
    a: Tensor, v: Tensor, relative: Tensor, incomplete: Tensor, rule: Rule
) -> Tensor:
    """The refined Gram route for the matrices it can be trusted with, the SVD for the others."""
    if bool(incomplete.all()):
        q, trusted = torch.empty_like(a), ~incomplete
    else:
        q, trusted = _refined(*_resolved(product(a, v), v, relative), rule)
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


def _resolved(c: Tensor, v: Tensor, relative: Tensor) -> tuple[Tensor, Tensor]:
    """``c = a v`` and ``v``, after a second Gram matrix where the first was too coarse."""
    for place in places(*map(range, c.shape[:-2])):
        # Each matrix by itself: how many are small differs.
        if float(relative[place][0]) < RESOLVED:
            turn_small(c[place], v[place], int((relative[place] < SMALL).sum()))
    return c, v


def turn_small(c: Tensor, v: Tensor, small: int) -> None:
    """Turn the first columns of ``c = a v`` and of ``v`` so that those of ``c`` are orthogonal.

    What is small in ``a^T a`` is known to the rounding of what is large. The columns of ``c`` for
    small directions hold little of the large ones, so their own Gram matrix tells them apart.
    """
    columns = c[:, :small]
    with suppress(LinAlgError):
        turn = torch.linalg.eigh(lower_gram(columns, c.dtype))[1]
        c[:, :small] = product(columns, turn)
        v[:, :small] = v[:, :small] @ turn


def _refined(c: Tensor, v: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Polar factor of ``a`` from ``c = a v``, and for which matrices it can be trusted."""
    squares = gram_matrix(c)
    d = squares.diagonal(dim1=-2, dim2=-1).sqrt()
    largest = d.amax(dim=-1, keepdim=True)
    kept = (d >= rule.rtol * largest) & (d > 0)
    if bool(kept.all()):
        k, second_order = inner_factor(squares, d)
    else:
        k, second_order = _inner_factor_beside_null(squares, d, kept)
    trusted = second_order <= rule.resolution
    if rule.complete or rule.rtol == 0:
        # The SVD has vectors for null directions, and tells a tiny one from zero.
        trusted &= kept.all(dim=-1) | (largest[..., 0] == 0)
    return product(c, k @ v.mT), trusted


def inner_factor(squares: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    r"""The ``k`` with ``c k v^T`` the polar factor of ``a = c v^T``, and what is neglected.

    The columns of ``c`` are orthogonal as far as ``v`` is right, and carry each singular value to
    its own rounding, which the Gram matrix of ``a`` does not. ``k`` is the inverse root of their
    ``squares``, ``c^T c``, to first order in what is off the diagonal: with ``d`` the lengths and
    ``f_ij = squares_ij / (d_i d_j)`` it is ``-f_ij / (d_i + d_j)`` there, and ``1 / d_i`` on the
    diagonal. Between a kept and a null direction the differences are those of ``1 / d`` and zero.
    Measured over five shapes of spectrum, the error is at most ``3 condition eps`` and what is of
    second order, below ``|f|^2``. That is known, and kept below the rounding of the result.

    Args:
        squares: ``(*batch, n, n)``.
        d: ``(*batch, n)``, the root of its diagonal, without zeros.
    """
    row, column = d.unsqueeze(-1), d.unsqueeze(-2)
    f = squares / (row * column)
    diagonal = f.diagonal(dim1=-2, dim2=-1).zero_()
    second_order = f.square().sum(dim=(-2, -1))
    k = f.div_(row + column).neg_()
    diagonal.copy_(d.reciprocal())
    return k, second_order


def _inner_factor_beside_null(squares: Tensor, d: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The same where directions are null."""
    row, column = d.unsqueeze(-1), d.unsqueeze(-2)
    unit = torch.where(d > 0, d, 1.0)
    f = squares / unit.unsqueeze(-1) / unit.unsqueeze(-2)
    f.diagonal(dim1=-2, dim2=-1).zero_()
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
    mixed = kept.unsqueeze(-1) ^ kept.unsqueeze(-2)
    # The angle by which the eigenvectors mix kept and null directions.
    angle = torch.where(mixed, f * row * column / (row.square() - column.square()), 0.0)
    m = torch.diag_embed(kept.to(d.dtype))
    m = m - torch.where(both, f * row / (row + column), 0.0)
    m = m + torch.where(mixed & kept.unsqueeze(-1), angle, 0.0)
    m = m - torch.where(mixed & kept.unsqueeze(-2), angle * row / column, 0.0)
    return m / unit.unsqueeze(-1), torch.where(both, f, angle).square().sum(dim=(-2, -1))
