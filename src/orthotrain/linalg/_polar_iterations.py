"""Polar factors of tall matrices by iteration; each matrix of a batch goes its own way."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from orthotrain.errors import NumericalWarning
from orthotrain.linalg._coefficients import polar_express
from orthotrain.linalg._polar_routes import Route, Rule, product, svd_route

# A result is announced where the root mean square over its directions of ``|s^3 - s|`` is above
# this many eps of the result; measured up to 9 at convergence.
_ACCURACY = 32
# From this weight on a step of QDWH may square the condition (Nakatsukasa and Higham use 100).
_CHOLESKY_BELOW = 100.0
# From any low end that float64 can tell from zero six steps reach rounding.
_MAX_HALLEY_STEPS = 8


def qdwh_route(a: Tensor, rule: Rule) -> Route:
    """QR-based, dynamically weighted Halley iteration on the triangular factor.

    It needs a bound below the least singular value. The inverse of the triangular factor gives
    one; where that says that a direction may be null, the SVD decides.

    Source:
        Nakatsukasa, Bai and Gygi (2010), SIAM J. Matrix Anal. Appl. 31(5), equations 3.6 and
        5.4; the switch to Cholesky: Nakatsukasa and Higham (2013), SIAM J. Sci. Comput. 35(3).
    """
    basis, r = torch.linalg.qr(a)
    top = torch.linalg.matrix_norm(r, keepdim=True)
    x = r / torch.where(top > 0, top, 1.0)
    low = _lower_bound(x)
    null = low[..., 0, 0] < max(rule.rtol, r.shape[-1] * rule.work_eps)
    x = _halley(x, torch.where(null[..., None, None], 1.0, low))
    q = product(basis, x)
    if bool(null.any()):
        if not rule.silent and bool((top[..., 0, 0] > 0)[null].any()):
            warnings.warn(
                f"polar_factor: {int(null.sum())} of {null.numel()} matrices may have null "
                f"directions (reciprocal condition {float(low.min()):.1e}) and took the SVD; "
                f"method='auto' does so silently",
                NumericalWarning,
                stacklevel=2,
            )
        q[null] = svd_route(a[null], rule).q.to(q.dtype)
    return Route(_announced(q, ~null, rule))


def _lower_bound(r: Tensor) -> Tensor:
    """At most the least singular value of a triangular matrix, at least it over ``sqrt(n)``."""
    identity = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    inverse = torch.linalg.solve_triangular(r, identity.expand_as(r), upper=True)
    # A zero on the diagonal gives infinity or NaN.
    norm: Tensor = torch.linalg.matrix_norm(inverse, keepdim=True)
    return 1 / norm.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _halley(x: Tensor, low: Tensor) -> Tensor:
    """Halley steps for singular values in ``[low, 1]``, until each matrix has arrived."""
    x, low = x.clone(), low.clone()
    for _ in range(_MAX_HALLEY_STEPS):
        moving = (1 - low > 10 * torch.finfo(x.dtype).eps)[..., 0, 0]
        if not bool(moving.any()):
            break
        x[moving], low[moving] = _halley_step(x[moving], low[moving])
    return x


def _halley_step(x: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """``x (a + b x^T x) (1 + c x^T x)^-1`` with the weights that lift the low end most."""
    square = low.square()
    d = (4 * (1 - square) / square.square()).pow(1 / 3)
    a = (1 + d).sqrt()
    a = a + (8 - 4 * d + 8 * (2 - square) / (square * a)).clamp(min=0).sqrt() / 2
    b = (a - 1).square() / 4
    c = a + b - 1
    resolvent = torch.empty_like(x)
    # Each matrix by its own weight, so that none changes how another is rounded.
    large = (c > _CHOLESKY_BELOW)[..., 0, 0]
    for chosen, solve in ((large, _resolvent_by_qr), (~large, _resolvent_by_cholesky)):
        if bool(chosen.any()):
            resolvent[chosen] = solve(x[chosen], c[chosen])
    low = (low * (a + b * square) / (1 + c * square)).clamp(max=1.0)
    return b / c * x + (a - b / c) * resolvent, low


def _resolvent_by_qr(x: Tensor, c: Tensor) -> Tensor:
    """``x (1 + c x^T x)^-1`` without squaring the condition."""
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)
    q = torch.linalg.qr(torch.cat([c.sqrt() * x, identity], dim=-2)).Q
    upper, lower = q.split(x.shape[-2], dim=-2)
    resolvent: Tensor = upper @ lower.mT / c.sqrt()
    return resolvent


def _resolvent_by_cholesky(x: Tensor, c: Tensor) -> Tensor:
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    root = torch.linalg.cholesky(identity + c * (x.mT @ x))
    return torch.cholesky_solve(x.mT, root).mT


def newton_schulz_route(a: Tensor, rule: Rule) -> Route:
    """The cubic iteration ``x <- (3 x - x x^T x) / 2`` until each matrix stands still.

    A matrix that has converged is left alone, so the rest of its batch decides nothing about it.
    """
    x, gram = _scaled(a)
    n = a.shape[-1]
    identity = torch.eye(n, dtype=a.dtype, device=a.device)
    rounding = 4 * rule.work_eps * n**0.5
    # A direction grows by half a step, so the least that is kept moves at least twice this far.
    null = 0.25 * rule.rtol * n**-0.25
    moving = torch.ones_like(a[..., :1, :1], dtype=torch.bool)
    for _ in range(rule.max_iters):
        gap = gram - identity
        step = product(x, gap) / 2
        x = torch.where(moving, x - step, x)
        # In the second the large ones weigh in full, the null ones by their square. What is left
        # of the large ones after this step is the square of it.
        moving = moving & (
            (torch.linalg.matrix_norm(step, keepdim=True) > max(rounding, null))
            | (torch.linalg.matrix_norm(gram @ gap, keepdim=True) > rule.work_eps**0.5)
        )
        if not bool(moving.any()):
            break
        null *= 1.5
        gram = x.mT @ x
    return _finished(a, x, rule)


def polar_express_route(a: Tensor, rule: Rule) -> Route:
    """Odd quintics, each the best for what the one before it leaves: matrix products only."""
    x, gram = _scaled(a)
    identity = torch.eye(gram.shape[-1], dtype=a.dtype, device=a.device)
    for number, (first, third, fifth) in enumerate(polar_express(rule.max_iters)):
        if number > 0:
            gram = x.mT @ x
        x = product(x, first * identity + (third * gram + fifth * (gram @ gram)))
    return _finished(a, x, rule)


def _scaled(a: Tensor) -> tuple[Tensor, Tensor]:
    """Each matrix over a bound of its largest singular value, and its Gram matrix.

    The bound ``|a^T a|^1/2`` exceeds the largest value by ``k^(1/4)`` at most, against
    ``k^(1/2)`` of the Frobenius norm, and the Gram matrix is the first step's own.
    """
    gram = a.mT @ a
    square = torch.linalg.matrix_norm(gram, keepdim=True)
    square = torch.where(square > 0, square, 1.0)
    return a / square.sqrt(), gram / square


def _finished(a: Tensor, q: Tensor, rule: Rule) -> Route:
    """The result; with ``complete`` the SVD's where a matrix has not become orthonormal."""
    others = torch.ones(q.shape[:-2], dtype=torch.bool, device=q.device)
    if rule.complete:
        identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        gap = (q.mT @ q - identity).abs().amax(dim=(-2, -1))
        others = gap <= _ACCURACY * rule.resolution
        if not bool(others.all()):
            q = q.clone()
            q[~others] = svd_route(a[~others], rule).q.to(q.dtype)
    return Route(_announced(q, others, rule))


def _announced(q: Tensor, made: Tensor, rule: Rule) -> Tensor:
    """``q``, after a warning with the residual where an iteration did not reach its accuracy."""
    n = q.shape[-1]
    identity = torch.eye(n, dtype=q.dtype, device=q.device)
    residual = torch.linalg.matrix_norm(q @ (q.mT @ q - identity)) / n**0.5
    far = made & ~(residual <= _ACCURACY * rule.resolution)
    if bool(far.any()):
        warnings.warn(
            f"polar_factor: {rule.method} left {int(far.sum())} of {far.numel()} matrices with a "
            f"residual |q q^T q - q| / sqrt(k) of up to {float(residual[far].max()):.1e}, above "
            f"{_ACCURACY * rule.resolution:.1e}; raise max_iters, or take method='auto'",
            NumericalWarning,
            stacklevel=2,
        )
    return q
