"""Eigenvectors and singular vectors with a named gradient that stays finite."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain._checks import require_finite, require_values
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, NotPositiveDefiniteError
from orthotrain.linalg._inputs import (
    refuse_nested_forward,
    require_matrix_shape,
    without_autocast,
)
from orthotrain.linalg._spectral_gradient import (
    NONNEGATIVE,
    FirstDerivative,
    SpectralGradient,
    gap_factors,
)
from orthotrain.linalg._symmetric import eigh_each, require_square, rounding, symmetric_part
from orthotrain.linalg.decompose import thin_svd, working_dtype


@checked
def eigh(
    a: Float[Tensor, "*batch n n"],
    *,
    gradient: SpectralGradient = "exact",
    drop_last: int = 50,
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n n"]]:
    """Eigenvalues and eigenvectors of symmetric matrices, with a named gradient.

    For a matrix root take ``spd_sqrt`` or ``spd_inv_sqrt``: their derivative exists where
    eigenvalues repeat. That of single eigenvectors does not.

    Args:
        a: ``(*batch, n, n)`` with ``n >= 1``, symmetric to rounding in its dtype; its symmetric
            part is taken. Batch entries are independent.
        gradient: What stands for ``1 / (l_i - l_j)`` with ``l_i > l_j``, ``r = l_j / l_i``:
            ``"exact"``, that itself, and nothing at a tie; ``"taylor"``,
            ``(1 / l_i) sum_{k <= 100} r^k``; ``"pade"``, ``(1 / l_i) / (1 - r)``, which is what
            the [50/50] Pade approximant of ``1 / (1 - r)`` amounts to, with ``1 - r >= eps``;
            ``"truncated"``, at most 1e10; ``"top_n"``, exact (at most 1e10) with the smallest
            ``drop_last`` eigenvalues taken for zero and nothing between two of these;
            ``"power_iteration"``, the first twenty terms of the series, which is what twenty
            steps of power iteration with the projector of each vector give.
        drop_last: For ``"top_n"``; fewer than ``n``. As published 50.

    Returns:
        ``(values, vectors)``: values ascending, vectors as columns, in the dtype of ``a``.
        Computed in float64 on CPU and in float32 on an accelerator (float64 stays float64), and
        rounded once.

    Raises:
        ShapeError: ``a`` is not square, or ``n`` is zero.
        ConfigError: ``a`` is not real floating-point or not symmetric, ``gradient`` is unknown,
            or ``drop_last`` is not in ``[0, n)`` for ``"top_n"``.
        NonFiniteError: ``a`` holds NaN or infinity.
        NotPositiveDefiniteError: An eigenvalue is negative beyond rounding and the gradient is
            none of ``"exact"`` and ``"truncated"``, the two that allow it.
        ConvergenceError: No driver finds the eigenvalues.
        NotImplementedError: A second derivative other than of ``"exact"`` was asked for.

    Warns:
        NumericalWarning: ``"exact"`` met values equal up to rounding in backward. The result is
            right for a loss that does not depend on the choice of vectors among these.

    Note:
        Every gradient is finite and antisymmetric in its factors, at ties, too: of two equal
        eigenvalues the first from above counts as the larger. The sign of each vector is that
        of the driver. A gradient with respect to ``values`` is exact under every name.

    Source:
        ``"taylor"``, ``"pade"``, ``"truncated"``, ``"top_n"``: Song, Sebe and Wang (2021), ICCV.
        ``"power_iteration"``: Wang et al. (2019), NeurIPS.

    Example:
        >>> values, vectors = eigh(torch.tensor([[5.0, 4.0], [4.0, 5.0]]))
        >>> [round(value, 4) for value in values.tolist()]
        [1.0, 9.0]
    """
    require_square("eigh", a)
    plan = _plan("eigh", a, gradient, drop_last)
    values: Tensor
    vectors: Tensor
    with without_autocast(a):
        values, vectors = _Eigh.apply(a.to(working_dtype(a)), plan)  # type: ignore[no-untyped-call]
        return values.to(a.dtype), vectors.to(a.dtype)


@checked
def svd(
    a: Float[Tensor, "*batch m n"],
    *,
    gradient: SpectralGradient = "exact",
    drop_last: int = 50,
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k n"]]:
    """Thin singular value decomposition ``a = u @ diag(s) @ vh`` with a named gradient.

    Args:
        a: ``(*batch, m, n)`` with ``m, n >= 1`` and ``k = min(m, n)``. Batch entries are
            independent.
        gradient: As for ``eigh``, of the eigenvalues ``l_i = s_i^2`` of ``a^T a``.
        drop_last: For ``"top_n"``; fewer than ``k``. As published 50.

    Returns:
        ``(u, s, vh)``, ``s`` from large to small, in the dtype of ``a``. Computed in float64 on
        CPU and in float32 on an accelerator (float64 stays float64), and rounded once.

    Raises:
        ShapeError: ``a.ndim < 2``, or ``m`` or ``n`` is zero.
        ConfigError: ``a`` is not real floating-point, ``gradient`` is unknown, or ``drop_last``
            is not in ``[0, k)`` for ``"top_n"``.
        NonFiniteError: ``a`` holds NaN or infinity.
        ConvergenceError: Every driver failed.
        NotImplementedError: A second derivative other than of ``"exact"`` was asked for.

    Warns:
        NumericalWarning: ``"exact"`` met values equal up to rounding in backward, or a driver
            failed.

    Note:
        Finite everywhere, as that of ``eigh``. Where ``m != n``, the part of the derivative that
        divides by ``s_i`` gives nothing in null directions.

    Source:
        As ``eigh``.

    Example:
        >>> u, s, vh = svd(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        >>> s.tolist()
        [4.0, 3.0]
    """
    require_matrix_shape("svd", a)
    require_values("svd", "a", a)
    plan = _plan("svd", a, gradient, drop_last)
    u: Tensor
    s: Tensor
    vh: Tensor
    with without_autocast(a):
        u, s, vh = _Svd.apply(a.to(working_dtype(a)), plan)  # type: ignore[no-untyped-call]
        return u.to(a.dtype), s.to(a.dtype), vh.to(a.dtype)


class _Plan(NamedTuple):
    function: str
    dtype: torch.dtype
    gradient: SpectralGradient
    drop_last: int


def _plan(function: str, a: Tensor, gradient: SpectralGradient, drop_last: int) -> _Plan:
    size = min(a.shape[-2:])
    if gradient == "top_n" and not 0 <= drop_last < size:
        raise ConfigError(
            f"{function} needs drop_last in [0, {size}) for a matrix of shape "
            f"{tuple(a.shape[-2:])} and gradient='top_n', got {drop_last}; at least one direction "
            f"must be left"
        )
    return _Plan(function, a.dtype, gradient, drop_last)


class _Eigh(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        symmetric = symmetric_part(plan.function, a, dtype=plan.dtype)
        values, vectors = eigh_each(plan.function, symmetric)
        if plan.gradient in NONNEGATIVE:
            _require_nonnegative(values, plan)
        return values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Plan], output: tuple[Tensor, ...]) -> None:
        ctx.plan = inputs[1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(
        ctx: Any, g_values: Tensor | None, g_vectors: Tensor | None
    ) -> tuple[Tensor | None, None]:
        values, vectors = ctx.saved_tensors
        plan: _Plan = ctx.plan
        inner: Tensor | None = None
        with without_autocast(values):
            if g_vectors is not None:
                # From large to small for the factors, and back.
                k = _factors(values.flip(-1), plan).flip(-2, -1)
                inner = k.mT * (vectors.mT @ g_vectors)
            if g_values is not None:
                diagonal = torch.diag_embed(g_values)
                inner = diagonal if inner is None else inner + diagonal
            if inner is None:
                return None, None
            x = vectors @ (inner + inner.mT) @ vectors.mT / 2
        return _first_unless_exact(x, plan, g_values, g_vectors, values, vectors), None

    @staticmethod
    def jvp(ctx: Any, da: Tensor, _: None) -> tuple[Tensor, Tensor]:
        refuse_nested_forward("eigh")
        values, vectors = ctx.saved_tensors
        plan: _Plan = ctx.plan
        with without_autocast(values):
            inner = vectors.mT @ ((da + da.mT) / 2) @ vectors
            k = _factors(values.flip(-1), plan).flip(-2, -1)
            return inner.diagonal(dim1=-2, dim2=-1).clone(), vectors @ (k.mT * inner)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], a: Tensor, plan: _Plan
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _Eigh.apply(a.movedim(in_dims[0], 0), plan)  # type: ignore[no-untyped-call]
        return outputs, (0, 0)


def _require_nonnegative(values: Tensor, plan: _Plan) -> None:
    lowest, largest = values[..., 0], values.abs().amax(dim=-1)
    noise = rounding(plan.dtype) * math.sqrt(values.shape[-1])
    if bool((lowest < -noise * largest).any()):
        raise NotPositiveDefiniteError(
            f"{plan.function} needs eigenvalues >= 0 for gradient={plan.gradient!r}, got one of "
            f"{float(lowest.min()):.3g} beside one of size {float(largest.max()):.3g}; add a ridge "
            f"of {1.1 * float(-lowest.min()):.2g} first, or take 'exact' or 'truncated'"
        )


def _factors(values: Tensor, plan: _Plan) -> Tensor:
    if plan.gradient in NONNEGATIVE:
        values = values.clamp(min=0)
    return gap_factors(
        plan.function,
        values,
        plan.gradient,
        drop_last=plan.drop_last,
        squared=plan.function == "svd",
    )


def _first_unless_exact(x: Tensor, plan: _Plan, *needs: Tensor | None) -> Tensor:
    if plan.gradient == "exact" or not torch.is_grad_enabled():
        return x
    first: Tensor = FirstDerivative.apply(plan.function, x, *needs)  # type: ignore[no-untyped-call]
    return first


class _Svd(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, plan: _Plan) -> tuple[Tensor, Tensor, Tensor]:
        # Here and not before, so that torch.vmap does not meet a decision on numbers.
        require_finite(plan.function, "a", a)
        # In the dtype of the input, whose rounding decides the route.
        u, s, vh = thin_svd(a.to(plan.dtype))
        return u, s, vh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Plan], output: tuple[Tensor, ...]) -> None:
        ctx.plan = inputs[1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(
        ctx: Any, g_u: Tensor | None, g_s: Tensor | None, g_vh: Tensor | None
    ) -> tuple[Tensor, None]:
        u, s, vh = ctx.saved_tensors
        with without_autocast(s):
            x = torch.zeros_like(u @ vh) if g_s is None else (u * g_s.unsqueeze(-2)) @ vh
            if g_u is not None or g_vh is not None:
                k = _factors(s, ctx.plan).mT
                if g_u is not None:
                    x = x + _through_left(g_u, u, s, vh, k)
                if g_vh is not None:
                    x = x + _through_left(g_vh.mT, vh.mT, s, u.mT, k).mT
        return _first_unless_exact(x, ctx.plan, g_u, g_s, g_vh, u, s, vh), None

    @staticmethod
    def jvp(ctx: Any, da: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor]:
        refuse_nested_forward("svd")
        u, s, vh = ctx.saved_tensors
        with without_autocast(s):
            k = _factors(s, ctx.plan).mT
            du = _left_along(da, u, s, vh, k)
            dv = _left_along(da.mT, vh.mT, s, u.mT, k)
            ds = (u.mT @ da @ vh.mT).diagonal(dim1=-2, dim2=-1).clone()
            return du, ds, dv.mT

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], a: Tensor, plan: _Plan
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _Svd.apply(a.movedim(in_dims[0], 0), plan)  # type: ignore[no-untyped-call]
        return outputs, (0, 0, 0)


def _through_left(g: Tensor, u: Tensor, s: Tensor, vh: Tensor, k: Tensor) -> Tensor:
    """What the gradient ``g`` of ``u`` adds to that of ``u s vh``; of ``v``, by the transpose."""
    along = u.mT @ g
    x = u @ ((along - along.mT) * k * s.unsqueeze(-2)) @ vh
    if u.shape[-2] == u.shape[-1]:
        return x
    return x + ((g - u @ along) * _outside_factors(s)) @ vh


def _left_along(da: Tensor, u: Tensor, s: Tensor, vh: Tensor, k: Tensor) -> Tensor:
    """The adjoint of ``_through_left``: how ``u`` moves with ``a``."""
    moved = da @ vh.mT
    along = u.mT @ moved
    turned = k * (along * s.unsqueeze(-2))
    du = u @ (turned - turned.mT)
    if u.shape[-2] == u.shape[-1]:
        return du
    return du + (moved - u @ along) * _outside_factors(s)


def _outside_factors(s: Tensor) -> Tensor:
    """``1 / s`` for what lies outside of the span of ``u``: nothing in null directions."""
    null = s <= torch.finfo(s.dtype).eps * s[..., :1]
    return torch.where(null, 0.0, 1 / torch.where(null, 1.0, s)).unsqueeze(-2)
