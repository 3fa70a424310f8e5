"""Derivatives of the polar factor of tall matrices, whatever route made it.

With ``a = q h`` they need no singular vectors of ``a``: a Lyapunov equation in ``h`` and its
inverse. Eigenvectors of ``h`` solve the two and are no part of the result, so repeated singular
values do no harm, and the derivative of a solution is another solution.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from orthotrain._checks import require_finite
from orthotrain.errors import ConfigError, NumericalWarning
from orthotrain.linalg._inputs import asks_for_transforms, refuse_nested_forward, without_autocast
from orthotrain.linalg._polar_iterations import (
    newton_schulz_route,
    polar_express_route,
    qdwh_route,
)
from orthotrain.linalg._polar_routes import Route, Rule, gram_route, product, svd_route


def tall_polar_factor(a: Tensor, rule: Rule) -> Tensor:
    """The polar factor of tall matrices in their dtype, differentiable; raises unless finite."""
    q: Tensor
    try:
        q = _Polar.apply(a, rule)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if not asks_for_transforms(error):
            raise
        q, *_ = _TransformedPolar.apply(a.to(rule.dtype), rule)  # type: ignore[no-untyped-call]
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


def _kept(route: Route) -> Tensor | None:
    if route.kept is None and route.s is not None:
        return torch.ones_like(route.s, dtype=torch.bool)
    return route.kept


class _Polar(torch.autograd.Function):
    """Polar factor with its exact derivative."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, rule: Rule) -> Tensor:
        # Here and not before, so that torch.vmap does not meet a decision on numbers.
        require_finite("polar_factor", "a", a)
        route = _route(a, rule)
        ctx.save_for_backward(a, route.q, route.v, route.s, _kept(route))  # type: ignore[arg-type]
        ctx.rtol = rule.rtol  # type: ignore[attr-defined]
        return route.q

    @staticmethod
    def backward(ctx: BackwardCFunction, g: Tensor) -> tuple[Tensor, None]:
        saved: Sequence[Tensor] = ctx.saved_tensors
        a, q, v, s, kept = saved
        with without_autocast(g):
            if v is None:
                v, s, kept = _spectrum(a.detach(), q.detach(), ctx.rtol)
            return _adjoint(g, a, q, v, s, kept), None


class _TransformedPolar(torch.autograd.Function):
    """The same for ``torch.func`` and forward mode: such a call costs 20 to 100 us more."""

    @staticmethod
    def forward(a: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        require_finite("polar_factor", "a", a)
        route = _route(a, rule)
        q, v, s, kept = route.q, route.v, route.s, _kept(route)
        if v is None or s is None or kept is None:
            v, s, kept = _spectrum(a, q, rule.rtol)
        # Forward mode takes no output that is a view.
        return q.clone(), v.clone(), s, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Rule], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], *output)
        ctx.save_for_forward(inputs[0], *output)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, None]:
        if g is None:
            return None, None
        with without_autocast(g):
            return _adjoint(g, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, da: Tensor, _: None) -> tuple[Tensor, None, None, None]:
        refuse_nested_forward("polar_factor")
        with without_autocast(da):
            return _forward_derivative(da, *ctx.saved_tensors), None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], a: Tensor, rule: Rule
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _TransformedPolar.apply(a.movedim(in_dims[0], 0), rule)  # type: ignore[no-untyped-call]
        return outputs, (0, 0, 0, 0)


def _spectrum(a: Tensor, q: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors and values of ``h = q^T a``, and which are not null."""
    h = q.mT @ a
    s, v = torch.linalg.eigh((h + h.mT) / 2)
    return v, s, (s >= rtol * s[..., -1:]) & (s > 0)


def _adjoint(g: Tensor, a: Tensor, q: Tensor, v: Tensor, s: Tensor, kept: Tensor) -> Tensor:
    """The gradient at ``a``: exact where the rank is full, among equal ranks where it is not."""
    full = _if_known(kept.all())
    if full:
        return _gradient(g, a, q, v, s)
    if full is None:
        # Under torch.vmap each matrix by itself; what is not chosen must be finite all the same.
        exact = _gradient(g, a, q, v, torch.where(kept, s, 1.0))
        other = _gradient_among_equal_ranks(g, q, v, s, kept)
        return torch.where(kept.all(dim=-1)[..., None, None], exact, other)
    _warn_null(kept)
    with torch.no_grad():
        gradient = _gradient_among_equal_ranks(g, q, v, s, kept)
    if torch.is_grad_enabled():
        gradient = _FirstDerivative.apply(gradient, g, q)  # type: ignore[no-untyped-call]
    return gradient


def _forward_derivative(
    da: Tensor, a: Tensor, q: Tensor, v: Tensor, s: Tensor, kept: Tensor
) -> Tensor:
    """``dq``; where a direction is null, among matrices of the same rank."""
    full = _if_known(kept.all())
    safe = s if full else torch.where(kept, s, 1.0)
    h = q.mT @ a
    h = (h + h.mT) / 2
    along = q.mT @ da
    x, inverse = _solution(along - along.mT, h, v, safe), _inverse(h, v, safe)
    exact = q @ x + (da - q @ along) @ inverse
    if full:
        return exact
    if full is False:
        _warn_null(kept)
    kept_vectors = v * kept.unsqueeze(-2)
    among = kept_vectors @ v.mT
    q = q @ among
    along = q.mT @ da
    pseudo = (v * torch.where(kept, 1 / safe, 0.0).unsqueeze(-2)) @ v.mT
    m = v.mT @ along @ v
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
    turning = torch.where(both, (m - m.mT) / (safe.unsqueeze(-1) + safe.unsqueeze(-2)), 0.0)
    other = q @ (v @ turning @ v.mT) + (da - q @ along) @ pseudo
    other = other + q @ pseudo @ (along - along @ among)
    return torch.where(kept.all(dim=-1)[..., None, None], exact, other)


def _if_known(flag: Tensor) -> bool | None:
    """A flag; None where nobody can know, under ``torch.vmap``."""
    try:
        return bool(flag)
    except RuntimeError:
        return None


def _gradient(g: Tensor, a: Tensor, q: Tensor, v: Tensor, s: Tensor) -> Tensor:
    """Adjoint of ``dq = q x + (1 - q q^T) da h^-1``, itself differentiable.

    Here ``h x + x h = q^T da - da^T q``: how the directions turn among themselves. The other
    part is how they leave the space they span.
    """
    h = q.mT @ a
    h = (h + h.mT) / 2
    along = q.mT @ g
    turning, inverse = _solution(along - along.mT, h, v, s), _inverse(h, v, s)
    return product(q, turning) + product(g - product(q, along), inverse)


def _solution(y: Tensor, h: Tensor, v: Tensor, s: Tensor) -> Tensor:
    """The ``x`` of ``h x + x h = y``, where ``h = v diag(s) v^T``."""
    x: Tensor = _Lyapunov.apply(y, h, v, s)  # type: ignore[no-untyped-call]
    return x


def _inverse(h: Tensor, v: Tensor, s: Tensor) -> Tensor:
    """``h^-1``, where ``h = v diag(s) v^T``."""
    inverse: Tensor = _Inverse.apply(h, v, s)  # type: ignore[no-untyped-call]
    return inverse


class _Lyapunov(torch.autograd.Function):
    """The ``x`` of ``h x + x h = y``, where ``h = v diag(s) v^T``; its derivative is another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, h: Tensor, v: Tensor, s: Tensor) -> Tensor:
        return v @ ((v.mT @ y @ v) / (s.unsqueeze(-1) + s.unsqueeze(-2))) @ v.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:], output)
        ctx.save_for_forward(*inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        h, v, s, x = ctx.saved_tensors
        with without_autocast(g):
            w = _solution(g, h, v, s)
            return w, -(w @ x.mT + x.mT @ w), None, None

    @staticmethod
    def jvp(ctx: Any, dy: Tensor, dh: Tensor, *_: None) -> Tensor:
        h, v, s, x = ctx.saved_tensors
        with without_autocast(dy):
            return _solution(dy - dh @ x - x @ dh, h, v, s)


class _Inverse(torch.autograd.Function):
    """``h^-1``, where ``h = v diag(s) v^T``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, v: Tensor, s: Tensor) -> Tensor:
        return (v / s.unsqueeze(-2)) @ v.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        with without_autocast(g):
            return -(inverse.mT @ g @ inverse.mT), None, None

    @staticmethod
    def jvp(ctx: Any, dh: Tensor, *_: None) -> Tensor:
        (inverse,) = ctx.saved_tensors
        with without_autocast(dh):
            change: Tensor = -(inverse @ dh @ inverse)
            return change


def _warn_null(kept: Tensor) -> None:
    warnings.warn(
        f"polar_factor: {int((~kept).sum())} of {kept.numel()} directions are null, and the "
        f"derivative does not exist there; returned the derivative among matrices of the same rank",
        NumericalWarning,
        stacklevel=2,
    )


def _gradient_among_equal_ranks(g: Tensor, q: Tensor, v: Tensor, s: Tensor, kept: Tensor) -> Tensor:
    """The same for the kept directions alone; null ones, completed or not, are held fixed."""
    kept_vectors = v * kept.unsqueeze(-2)
    q = q @ (kept_vectors @ v.mT)
    inverse = torch.where(kept, 1 / torch.where(kept, s, 1.0), 0.0).unsqueeze(-2)
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

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, g: Tensor, q: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None, None]:
        raise NotImplementedError(
            f"polar_factor has a second derivative only where no direction is null, got null "
            f"directions in a matrix of shape {tuple(ctx.shape)}; drop create_graph, detach the "
            f"gradient, or make the rank full"
        )

    jvp = backward
