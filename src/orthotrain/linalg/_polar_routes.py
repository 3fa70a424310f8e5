"""Polar factors of tall matrices by a decomposition: the SVD, or the Gram matrix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
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
_RESOLVED, _SMALL = 4e-11, 1e-6
# Half of a Gram matrix is enough for its eigenvectors. In four blocks it takes .68 of the time of
# the whole at 256x2304; below this size the calls cost more than the products.
_BLOCKED_FROM = 128
# A skinny matrix with more entries than the first is widened in parts of about the second, which
# stay in the cache: .5 to .6 of the time at 6x524288, no gain at 6x32768 (docs/log.md).
_WHOLE_UP_TO, _PART = 2**20, 2**16
# Up to here calls are a part of the time that shows. And up to so many columns an SVD costs less
# than the calls of a refinement.
_LEAN_UP_TO, _SVD_UP_TO = 2**14, 64
# ``Rule.least_of`` of a result in float32, and the largest ``rtol`` that does not change it.
_WELL_CONDITIONED, LEAN_RTOL = 2.0**-29, 4e-5
# Rows up to which rounding of a Gram matrix was measured; it grows with their number.
_ROWS = 2304


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

    def least_of(self, a: Tensor) -> float:
        """Eigenvalues of ``a^T a`` above this share of the largest are taken as they are.

        The entries of ``q^T q - 1`` are within ``(17 + 1.4 condition^2) eps``, whatever the
        spectrum, from 8x8 to 2304x256. So this keeps them within 1.4 eps of the result; typical
        is .05 of that. With more rows the rounding of the Gram matrix is larger.
        """
        rounding = self.work_eps / self.resolution * max(1.0, a.shape[-2] / _ROWS)
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


def lean_factor(a: Tensor, rule: Callable[[], Rule]) -> Tensor:
    """Polar factor of one tall matrix of less than float64, with as few calls as there can be.

    At 64x27 a call costs a hundredth of the whole, and so does a rule, which is made where it is
    needed. What two eigenvalues do not settle takes the SVD where that is small, and else goes on
    as in ``gram_route``.

    Args:
        a: ``(m, n)`` with ``m >= n``.
        rule: The rule, with an ``rtol`` of at most ``LEAN_RTOL``.
    """
    if a.numel() > _LEAN_UP_TO:
        return gram_route(a, rule()).q
    wide = a.double()
    try:
        eigenvalues, v = torch.linalg.eigh(wide.mT @ wide)
    except LinAlgError:
        return gram_route(a, rule()).q
    values = eigenvalues.tolist()
    if values[0] > _WELL_CONDITIONED * values[-1]:
        return product(wide, (v / eigenvalues.sqrt_()) @ v.mT)
    found = rule()
    # Who named this route is told of an SVD, by the longer way.
    if found.silent and len(values) <= _SVD_UP_TO and 0 < values[-1] < math.inf:
        return _small_svd(wide, found)
    return _unsettled(wide, eigenvalues, v, found).q


def _small_svd(a: Tensor, rule: Rule) -> Tensor:
    """The polar factor of one finite matrix from its SVD, with few calls."""
    try:
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
    except LinAlgError:
        return svd_route(a, rule).q
    values = s.tolist()
    least = rule.rtol * values[0]
    if values[-1] <= least and not rule.complete:
        u = u * ((s >= least) & (s > 0))
    factor: Tensor = u @ vh
    return factor


def gram_route(a: Tensor, rule: Rule) -> Route:
    """Eigenvectors of ``a^T a``: as they are, refined, or the SVD, as each matrix asks for.

    ``a`` may have a lesser dtype than the rule, and then ``q`` may have it, too.
    """
    if a.dtype != rule.dtype and not _goes_by_parts(a):
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
    if bool((eigenvalues[..., 0] > rule.least_of(a) * eigenvalues[..., -1]).all()):
        s = eigenvalues.sqrt()
        return Route(_rounded_product(a, (v / s.unsqueeze(-2)) @ v.mT), v, s)
    return _unsettled(a, eigenvalues, v, rule)


def _unsettled(a: Tensor, eigenvalues: Tensor, v: Tensor, rule: Rule) -> Route:
    """What each matrix takes where some have small or null directions, or are not finite."""
    require_finite("polar_factor", "a", a)
    largest = eigenvalues[..., -1:]
    relative = eigenvalues / torch.where(largest > 0, largest, 1.0)
    kept = relative >= rule.least_of(a)
    null = (relative <= rule.rtol**2 - _GRAM_NOISE * rule.work_eps) | (largest == 0)
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
    n = a.shape[-1]
    if a.dtype != dtype and _goes_by_parts(a):
        products = (wide.mT @ wide for wide in (part.to(dtype) for part in _parts(a)))
        return sum(products, start=next(products))
    wide = a if a.dtype == dtype else a.to(dtype)
    if n < _BLOCKED_FROM:
        return wide.mT @ wide
    gram = a.new_zeros(*a.shape[:-2], n, n, dtype=dtype)
    for start, end in pairwise(n * part // 4 for part in range(5)):
        gram[..., start:end, :end] = wide[..., start:end].mT @ wide[..., :end]
    return gram


def _goes_by_parts(a: Tensor) -> bool:
    """Whether a tall matrix is skinny and large, so that it is widened in parts."""
    m, n = a.shape[-2:]
    return n < _BLOCKED_FROM and m * n > _WHOLE_UP_TO


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
    """``c = a v`` and ``v``, after a second Gram matrix where the first was too coarse.

    What is small in ``a^T a`` is known to the rounding of what is large. The columns of ``c`` for
    small directions hold little of the large ones, so their own Gram matrix tells them apart.
    """
    for place in places(*map(range, c.shape[:-2])):
        # Each matrix by itself: how many are small differs.
        if float(relative[place][0]) >= _RESOLVED:
            continue
        small = int((relative[place] < _SMALL).sum())
        columns = c[place][:, :small]
        with suppress(LinAlgError):
            turn = torch.linalg.eigh(lower_gram(columns, c.dtype))[1]
            c[place][:, :small] = product(columns, turn)
            v[place][:, :small] = v[place][:, :small] @ turn
    return c, v


def _refined(c: Tensor, v: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    r"""Polar factor of ``a`` from ``c = a v``, and for which matrices it can be trusted.

    The columns of ``c`` are orthogonal as far as ``v`` is right, and carry each singular value to
    its own rounding, which the Gram matrix does not. With ``c = b diag(d)`` and
    ``b^T b = 1 + f`` the polar factor is ``b m v^T``, to first order in ``f``, with
    ``m_ij = -f_ij d_i / (d_i + d_j)`` off the diagonal. Between a kept and a null direction the
    differences are those of ``1 / d`` and zero. Measured over five shapes of spectrum, the error
    is at most ``3 condition eps`` and what is of second order, below ``|f|^2``. That is known,
    and kept below the rounding of the result.
    """
    squares = lower_gram(c, c.dtype)
    d = squares.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = torch.where(d > 0, d, 1.0)
    f = squares.tril(-1) / unit.unsqueeze(-1) / unit.unsqueeze(-2)
    largest = d.amax(dim=-1, keepdim=True)
    kept = (d >= rule.rtol * largest) & (d > 0)
    if bool(kept.all()):
        m, second_order = _correction(f, d)
    else:
        m, second_order = _correction_beside_null(f + f.mT, d, kept)
    trusted = second_order <= rule.resolution
    if rule.complete or rule.rtol == 0:
        # The SVD has vectors for null directions, and tells a tiny one from zero.
        trusted &= kept.all(dim=-1) | (largest[..., 0] == 0)
    return product(c, (m / unit.unsqueeze(-1)) @ v.mT), trusted


def _correction(f: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """``m``, and the size of what it leaves, from the lower triangle of ``f``."""
    below = f * (d.unsqueeze(-1) / (d.unsqueeze(-1) + d.unsqueeze(-2)))
    m = (below - f).mT - below
    m.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return m, 2 * f.square().sum(dim=(-2, -1))


def _correction_beside_null(f: Tensor, d: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The same where directions are null, from the whole of ``f``."""
    row, column = d.unsqueeze(-1), d.unsqueeze(-2)
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
    mixed = kept.unsqueeze(-1) ^ kept.unsqueeze(-2)
    # The angle by which the eigenvectors mix kept and null directions.
    angle = torch.where(mixed, f * row * column / (row.square() - column.square()), 0.0)
    m = torch.diag_embed(kept.to(d.dtype))
    m = m - torch.where(both, f * row / (row + column), 0.0)
    m = m + torch.where(mixed & kept.unsqueeze(-1), angle, 0.0)
    m = m - torch.where(mixed & kept.unsqueeze(-2), angle * row / column, 0.0)
    return m, torch.where(both, f, angle).square().sum(dim=(-2, -1))
