"""Derivatives of the polar factor of tall matrices, whatever route made it.

With ``a = q h`` they need no singular vectors of ``a``: a Lyapunov equation in ``h`` and its
inverse. Eigenvectors of ``h`` solve the two and are no part of the result, so repeated singular
values do no harm, and the derivative of a solution is another solution.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from orthotrain.errors import ConfigError, NumericalWarning
from orthotrain.linalg._inputs import without_autocast
from orthotrain.linalg._polar_iterations import (
    newton_schulz_route,
    polar_express_route,
    qdwh_route,
)
from orthotrain.linalg._polar_routes import Route, Rule, gram_route, product, svd_route


def tall_polar_factor(a: Tensor, rule: Rule) -> Tensor:
    """The polar factor of tall matrices in their dtype, differentiable."""
    q: Tensor = _Polar.apply(a, rule)  # type: ignore[no-untyped-call]
    return q


def _route(a: Tensor, rule: Rule) -> Route:
    match rule.method:
        case "svd":
            return svd_route(a, rule)
        case "gram":
            return gram_route(a, rule)
        case "qdwh":
            return qdwh_route(a, rule)
        case "newton_schulz":
            return newton_schulz_route(a, rule)
        case "polar_express":
            return polar_express_route(a, rule)
        case "auto":
            raise ConfigError("polar_factor needs a route here, got 'auto'; choose one before")
        case _:
            assert_never(rule.method)


class _Polar(torch.autograd.Function):
    """Polar factor with its exact derivative."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, rule: Rule) -> Tensor:
        route = _route(a, rule)
        ctx.save_for_backward(a, route.q, route.v, route.s, route.kept)  # type: ignore[arg-type]
        ctx.rtol = rule.rtol  # type: ignore[attr-defined]
        return route.q

    @staticmethod
    def backward(ctx: BackwardCFunction, g: Tensor) -> tuple[Tensor, None]:
        saved: Sequence[Tensor] = ctx.saved_tensors
        a, q, v, s, kept = saved
        with without_autocast(g):
            if v is None:
                v, s, kept = _spectrum(a.detach(), q.detach(), ctx.rtol)
            if bool(kept.all()):
                return _gradient(g, a, q, v, s), None
            with torch.no_grad():
                gradient = _gradient_among_equal_ranks(g, q, v, s, kept)
        if torch.is_grad_enabled():
            gradient = _FirstDerivative.apply(gradient, g, q)  # type: ignore[no-untyped-call]
        return gradient, None


def _spectrum(a: Tensor, q: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors and values of ``h = q^T a``, and which are not null."""
    h = q.mT @ a
    s, v = torch.linalg.eigh((h + h.mT) / 2)
    return v, s, (s >= rtol * s[..., -1:]) & (s > 0)


def _gradient(g: Tensor, a: Tensor, q: Tensor, v: Tensor, s: Tensor) -> Tensor:
    """Adjoint of ``dq = q x + (1 - q q^T) da h^-1``, itself differentiable.

    Here ``h x + x h = q^T da - da^T q``: how the directions turn among themselves. The other
    part is how they leave the space they span.
    """
    h = q.mT @ a
    h = (h + h.mT) / 2
    along = q.mT @ g
    turning: Tensor = _Lyapunov.apply(along - along.mT, h, v, s)  # type: ignore[no-untyped-call]
    inverse: Tensor = _Inverse.apply(h, v, s)  # type: ignore[no-untyped-call]
    return product(q, turning) + product(g - product(q, along), inverse)


class _Lyapunov(torch.autograd.Function):
    """The ``x`` of ``h x + x h = y``, where ``h = v diag(s) v^T``; its derivative is another."""

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, h: Tensor, v: Tensor, s: Tensor) -> Tensor:
        x = v @ ((v.mT @ y @ v) / (s.unsqueeze(-1) + s.unsqueeze(-2))) @ v.mT
        ctx.save_for_backward(h, v, s, x)
        return x

    @staticmethod
    def backward(ctx: BackwardCFunction, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        saved: Sequence[Tensor] = ctx.saved_tensors
        h, v, s, x = saved
        with without_autocast(g):
            w: Tensor = _Lyapunov.apply(g, h, v, s)  # type: ignore[no-untyped-call]
            return w, -(w @ x.mT + x.mT @ w), None, None


class _Inverse(torch.autograd.Function):
    """``h^-1``, where ``h = v diag(s) v^T``."""

    @staticmethod
    def forward(ctx: FunctionCtx, h: Tensor, v: Tensor, s: Tensor) -> Tensor:
        inverse = (v / s.unsqueeze(-2)) @ v.mT
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: BackwardCFunction, g: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        with without_autocast(g):
            return -(inverse.mT @ g @ inverse.mT), None, None


def _gradient_among_equal_ranks(g: Tensor, q: Tensor, v: Tensor, s: Tensor, kept: Tensor) -> Tensor:
    """The same for the kept directions alone; null ones, completed or not, are held fixed."""
    null = int((~kept).sum())
    warnings.warn(
        f"polar_factor: {null} of {kept.numel()} directions are null, and the derivative does not "
        f"exist there; returned the derivative among matrices of the same rank",
        NumericalWarning,
        stacklevel=2,
    )
    kept_vectors = v * kept.unsqueeze(-2)
    q = q @ (kept_vectors @ v.mT)
    inverse = torch.where(kept, 1 / s, 0.0).unsqueeze(-2)
    pseudo_inverse = (v * inverse) @ v.mT
    along = q.mT @ g
    m = v.mT @ along @ v
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
    turning = torch.where(both, (m - m.mT) / (s.unsqueeze(-1) + s.unsqueeze(-2)), 0.0)
    gradient = q @ (v @ turning @ v.mT) + (g - q @ along) @ pseudo_inverse
    outside = along - (along @ kept_vectors) @ v.mT
    return gradient + q @ pseudo_inverse @ outside


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
            f"polar_factor has a second derivative only where no direction is null, got null "
            f"directions in a matrix of shape {tuple(g.shape)}; drop create_graph, detach the "
            f"gradient, or make the rank full"
        )
