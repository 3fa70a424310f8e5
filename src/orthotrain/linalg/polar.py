"""Polar factor: the nearest matrix with orthonormal columns, with its exact derivative."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple, assert_never, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from orthotrain.errors import ConfigError, NumericalWarning
from orthotrain.linalg._inputs import (
    power_of_two_scale,
    require_fraction,
    require_matrix,
    result_dtype,
    without_autocast,
)
from orthotrain.linalg.decompose import LinAlgError, thin_svd, working_dtype
from orthotrain.linalg.rank import numerical_rank

PolarMethod = Literal["auto", "svd", "gram"]

# Measured from 8x8 to 2304x256, condition 1 to 1e6, whatever the shape of the spectrum: the entries
# of q^T q - 1 of the Gram route are below (17 + 1.4 * condition**2) * eps64. So from condition 1e7
# on, 1.4 * eps64 * 1e14 = .03, nothing of it can be used ...
_GRAM_MAX_CONDITION = 1e7
# ... and "auto" takes it while condition**2 * eps64 is within this many eps of the result.
_GRAM_BUDGET = 1
# Eigenvalues of a Gram matrix are known to this many eps of the largest; measured up to 15.
_GRAM_NOISE = 256


def polar_factor(
    a: Float[Tensor, "*batch m n"], *, method: PolarMethod = "auto", rtol: float | None = None
) -> Float[Tensor, "*batch m n"]:
    r"""Nearest matrix with orthonormal columns (rows, if wide) in Frobenius norm.

    With the thin SVD ``a = U diag(s) Vh`` this is ``U Vh``: directions are kept, every
    singular value becomes one. Nearest-orthogonal gradient (NOG) applies it to a gradient.

    Args:
        a: ``(*batch, m, n)`` with ``m, n >= 1``. Batch entries are independent: one entry
            never changes the value or gradient of another.
        method: ``"svd"`` is exact to rounding at any condition. ``"gram"`` takes the
            eigenvectors of ``a^T a`` in float64, half the time of ``"svd"`` or less, with an error
            of about ``eps64 * condition**2``; entries beyond condition 1e7 use the SVD, with a
            warning. ``"auto"`` takes the Gram route for those entries where that error is
            below the rounding of the result (float32 and less: up to condition 2e4), as the
            eigenvalues tell, and the SVD for the others and for float64 input.
        rtol: In ``[0, 1)``. Directions with ``s_i < rtol * s_0`` are null and stay zero, so a
            zero matrix maps to zero, also with 0. Defaults to the larger of ``4 * eps`` of the
            input's dtype (rounding of a matrix product; half precision is taken at face value,
            with the eps of float32) and ``eps * max(m, n)`` of the dtype it is computed in.

    Returns:
        Same shape, dtype and device as ``a``. Computed in float64 on CPU (on an accelerator
        ``"svd"`` computes in float32, except for float64 input) and rounded once at the end.

    Raises:
        ShapeError: ``a.ndim < 2``, or ``m`` or ``n`` is zero.
        ConfigError: ``a`` is not real floating-point, ``rtol`` is outside ``[0, 1)``, or
            ``method`` is unknown.
        NonFiniteError: ``a`` holds NaN or infinity.
        ConvergenceError: No driver converged.
        NotImplementedError: A second derivative was asked for.

    Warns:
        NumericalWarning: ``"gram"`` met a matrix it cannot take; or the derivative was
            asked for where it does not exist.

    Note:
        Differentiable once, where the rank is full; the derivative carries ``1 / (s_i + s_j)``,
        so repeated singular values do no harm. **Where a direction is null the derivative does
        not exist**: the backward pass then gives the derivative among matrices of the same rank
        (zero for a zero matrix) and warns.

    Source:
        Higham (1986), SIAM J. Sci. Stat. Comput. 7(4). As a gradient map: Song, Sebe and
        Wang (2022), arXiv:2207.02119.

    Example:
        >>> polar_factor(torch.tensor([[0.0, -3.0], [2.0, 0.0]])).tolist()
        [[0.0, -1.0], [1.0, 0.0]]
    """
    require_matrix("polar_factor", a)
    rule = _rule(a, method, rtol)
    work = a.to(rule.dtype)
    # The polar factor of a multiple is the same, so the scale is a constant of the derivative.
    work = work / power_of_two_scale(work)
    with without_autocast(work):
        if work.shape[-2] >= work.shape[-1]:
            q = _tall_polar_factor(work, rule)
        else:
            q = _tall_polar_factor(work.mT, rule).mT
    return q.to(a.dtype).contiguous()


@dataclass(frozen=True)
class _Rule:
    """Route, working dtype, and what tells null and trusted directions apart."""

    method: PolarMethod
    dtype: torch.dtype
    rtol: float
    max_condition: float


def _rule(a: Tensor, method: PolarMethod, rtol: float | None) -> _Rule:
    if method not in get_args(PolarMethod):
        raise ConfigError(
            f"polar_factor needs method to be one of {', '.join(get_args(PolarMethod))}, got "
            f"{method!r}; 'auto' is right unless you compare routes"
        )
    resolution = torch.finfo(result_dtype(a.dtype)).eps
    dtype = _gram_dtype(a)
    if method == "auto" and resolution <= torch.finfo(dtype).eps:
        # No digits to spare for squaring the condition.
        method = "svd"
    match method:
        case "svd":
            dtype, max_condition = working_dtype(a), math.inf
        case "gram":
            max_condition = _GRAM_MAX_CONDITION
        case "auto":
            max_condition = math.sqrt(_GRAM_BUDGET * resolution / torch.finfo(dtype).eps)
        case _:
            assert_never(method)
    if rtol is None:
        rtol = max(4 * resolution, torch.finfo(dtype).eps * max(a.shape[-2:]))
    require_fraction("polar_factor", "rtol", rtol)
    return _Rule(method, dtype, rtol, max_condition)


def _gram_dtype(a: Tensor) -> torch.dtype:
    """Float64, since a Gram matrix squares the condition; Apple's devices have none."""
    return torch.float32 if a.device.type == "mps" else torch.float64


class _Route(NamedTuple):
    """Polar factor ``q`` of tall matrices with what its derivative needs: ``a^T a = v s^2 v^T``."""

    q: Tensor
    v: Tensor
    s: Tensor
    kept: Tensor


def _svd_route(a: Tensor, rtol: float) -> _Route:
    u, s, vh = thin_svd(a)
    rank = numerical_rank(s, rtol=rtol).unsqueeze(-1)
    kept = (torch.arange(s.shape[-1], device=s.device) < rank) & (s > 0)
    return _Route((u * kept.unsqueeze(-2)) @ vh, vh.mT, s, kept)


def _gram_route(a: Tensor, rule: _Rule) -> _Route:
    """Eigenvectors of ``a^T a``; the SVD for the entries whose eigenvalues ask for it."""
    try:
        eigenvalues, v = torch.linalg.eigh(a.mT @ a)
    except LinAlgError:
        warnings.warn(
            f"polar_factor of shape {tuple(a.shape)}: eigh of the Gram matrix did not converge, "
            f"used the SVD",
            NumericalWarning,
            stacklevel=2,
        )
        return _svd_route(a, rule.rtol)
    largest = eigenvalues[..., -1:]
    relative = eigenvalues / torch.where(largest > 0, largest, 1.0)
    noise = _GRAM_NOISE * torch.finfo(a.dtype).eps
    kept = relative >= max(rule.max_condition**-2, rule.rtol**2 + noise)
    null = (relative <= rule.rtol**2 - noise) | (largest == 0)
    s = eigenvalues.clamp(min=0).sqrt()
    inverse = torch.where(kept, 1 / s, 0.0)
    route = _Route(a @ ((v * inverse.unsqueeze(-2)) @ v.mT), v, s, kept)
    unsure = ~(kept | null).all(dim=-1)
    return _with_svd_where(route, a, unsure, rule) if bool(unsure.any()) else route


def _with_svd_where(route: _Route, a: Tensor, unsure: Tensor, rule: _Rule) -> _Route:
    """The route with the SVD's answer for the batch entries in ``unsure``."""
    if rule.method == "gram":
        warnings.warn(
            f"polar_factor: {int(unsure.sum())} of {unsure.numel()} matrices have a condition "
            f"above {rule.max_condition:.0e} and took the SVD; method='auto' does so silently",
            NumericalWarning,
            stacklevel=2,
        )
    # Boolean indexing takes out the chosen entries of any batch shape, a scalar one included.
    exact = _svd_route(a[unsure], rule.rtol)
    for whole, part in zip(route, exact, strict=True):
        whole[unsure] = part
    return route


def _tall_polar_factor(a: Tensor, rule: _Rule) -> Tensor:
    q: Tensor = _Polar.apply(a, rule)  # type: ignore[no-untyped-call]
    return q


class _Polar(torch.autograd.Function):
    """Polar factor of tall matrices with the exact derivative in the basis of the SVD."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, rule: _Rule) -> Tensor:
        route = _svd_route(a, rule.rtol) if rule.method == "svd" else _gram_route(a, rule)
        ctx.save_for_backward(*route)
        return route.q

    @staticmethod
    def backward(ctx: BackwardCFunction, g: Tensor) -> tuple[Tensor, None]:
        route = _Route._make(ctx.saved_tensors)
        with torch.no_grad(), without_autocast(g):
            gradient = _polar_gradient(g, route)
        if torch.is_grad_enabled():
            gradient = _FirstDerivative.apply(gradient, g, route.q)  # type: ignore[no-untyped-call]
        return gradient, None


class _FirstDerivative(torch.autograd.Function):
    """Ties the gradient to what it depends on, so that a second derivative is refused.

    ``once_differentiable`` looks at the upstream gradient alone: behind a plain sum it would give
    a constant, and the second derivative would be zero without a word.
    """

    @staticmethod
    def forward(_: FunctionCtx, gradient: Tensor, g: Tensor, q: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(_: BackwardCFunction, g: Tensor) -> tuple[Tensor, None, None]:
        raise NotImplementedError(
            f"polar_factor has one derivative, got a call for the second at shape "
            f"{tuple(g.shape)}; detach its gradient or drop create_graph"
        )


def _polar_gradient(g: Tensor, route: _Route) -> Tensor:
    """Adjoint of ``dq = u ((m - m^T) / (s_i + s_j)) v^T + (1 - u u^T) da v s^-1 v^T``.

    Here ``m = u^T da v`` and ``u = q v``. For the kept directions only, where some are null.
    """
    q, v, s, kept = route
    inverse = torch.where(kept, 1 / s, 0.0).unsqueeze(-2)
    along = q.mT @ g
    m = v.mT @ along @ v
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
    rotation = torch.where(both, (m - m.mT) / (s.unsqueeze(-1) + s.unsqueeze(-2)), 0.0)
    pseudo_inverse = (v * inverse) @ v.mT
    gradient = q @ (v @ rotation @ v.mT) + (g - q @ along) @ pseudo_inverse
    null = int((~kept).sum())
    if null == 0:
        return gradient
    warnings.warn(
        f"polar_factor: {null} of {kept.numel()} directions are null, where the derivative does "
        f"not exist; gave the derivative among matrices of the same rank",
        NumericalWarning,
        stacklevel=2,
    )
    outside = along - ((along @ v) * kept.unsqueeze(-2)) @ v.mT
    return gradient + q @ pseudo_inverse @ outside
