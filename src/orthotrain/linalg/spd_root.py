"""Square root and inverse square root of symmetric positive (semi-)definite matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain._doors import checked
from orthotrain.errors import ConfigError
from orthotrain.linalg._inputs import asks_for_transforms, refuse_nested_forward, without_autocast
from orthotrain.linalg._prepared_root import RootOfPrepared, root_of_prepared
from orthotrain.linalg._root_backward import (
    EigenBasis,
    gradient_of_root,
)
from orthotrain.linalg._root_checks import (
    PreparedMatrix,
    RootGradient,
    RootMethod,
    RootPlan,
    carried_dtype,
    positive_values,
    require_root_settings,
    with_ridge_gradient,
)
from orthotrain.linalg._root_forward import DEFAULT_ITERATIONS
from orthotrain.linalg._symmetric import eigh_each, require_square, symmetric_part
from orthotrain.linalg.decompose import working_dtype


@checked
def spd_sqrt(  # noqa: PLR0913 - one matrix, the rest by name
    a: Float[Tensor, "*batch n n"],
    *,
    method: RootMethod = "auto",
    gradient: RootGradient = "exact",
    ridge: float = 0.0,
    relative_ridge: float = 0.0,
    iterations: int | None = None,
    rounded_to: torch.dtype | None = None,
) -> Float[Tensor, "*batch n n"]:
    r"""Symmetric square root: ``S`` with ``S S = a + ridge``.

    Args:
        a: ``(*batch, n, n)`` with ``n >= 1``, symmetric to rounding in its dtype; its symmetric
            part is taken. Batch entries are independent, in value and in gradient.
        method: ``"eigh"`` takes eigenvalues and eigenvectors. ``"newton_schulz"`` and
            ``"polar_express"`` (coupled) use products only; what they have not reached after
            their steps is wrong without a word. ``"mpa"`` ([5/5] Pade) and ``"mtp"`` (Taylor to
            degree 10) are biased: see the note. ``"auto"`` is ``"eigh"``.
        gradient: ``"exact"`` is the derivative of the exact root, evaluated in the eigenbasis,
            whatever the method; it costs an ``eigh`` in backward where the method is another.
            ``"lyapunov"`` is the published iteration of eight steps, right while the smallest
            eigenvalue of the root is above about 10 % of its norm. ``"newton_schulz"`` is autograd
            through the steps of that method.
        ridge: Added to the diagonal.
        relative_ridge: Times the mean eigenvalue ``trace(a) / n``, added to the diagonal, too; the
            derivative goes through it.
        iterations: Steps of ``"newton_schulz"`` (default 15; as published 5) or of
            ``"polar_express"`` (default 8).
        rounded_to: Dtype that ``a`` was stored in before, if coarser than its own. What rounding
            is, in symmetry and around zero, then follows it.

    Returns:
        Same shape, dtype and device as ``a``, symmetric. Computed in float64 on CPU and in
        float32 on an accelerator (float64 stays float64); for ``n >= 64`` and input below
        float64 the last product is in float32. Autocast changes nothing.

    Raises:
        ShapeError: ``a`` is not square, or ``n`` is zero.
        ConfigError: ``a`` is not real floating-point or not symmetric; an unknown ``method`` or
            ``gradient``, or a combination that cannot work; a negative ridge; a ``rounded_to``
            that is no floating-point type.
        NonFiniteError: ``a`` holds NaN or infinity.
        NotPositiveDefiniteError: An eigenvalue of ``a + ridge`` is negative beyond rounding in the
            dtype of ``a``; within it, it counts as zero.
        ConvergenceError: No driver finds the eigenvalues.

    Warns:
        NumericalWarning: ``eigh`` failed for an entry and the SVD was used; or a
            derivative was asked for at a singular matrix.

    Note:
        Differentiable any number of times where ``a + ridge`` is definite, repeated eigenvalues
        included: the derivative carries ``1 / (s_i + s_j)``. **At a singular matrix it does not
        exist**: backward then gives zero between null directions, the exact terms elsewhere,
        and warns. ``"lyapunov"`` is finite there, too, and does not warn.
        The bias of ``"mpa"``: with ``x`` an eigenvalue over ``|a|_F``, ``s`` its root and ``r``
        what is computed, ``(r - s) / (r + s) = ((1 - s) / (1 + s))**11``. So every eigenvalue is
        floored near ``|a|_F / 121`` (``"mtp"``: near ``|a|_F / 32``): 25 % off
        at ``x = 0.01``, 200 % at 0.001. It is a hidden ridge. ``torch.vmap``, ``torch.func``
        (``grad``, ``jvp``, ``jacfwd``, ``jacrev``, ``hessian``) and, with graph breaks,
        ``torch.compile`` work; under ``vmap`` of a gradient the warning of null eigenvalues is
        not given. Forward mode over forward mode is refused: torch would give zero.

    Source:
        Derivative: Daleckii and Krein (1965). ``"newton_schulz"``: Li et al. (2018), iSQRT-COV,
        and Huang et al. (2019), IterNorm. ``"mpa"``, ``"mtp"``, ``"lyapunov"``: Song, Sebe and
        Wang (2022), ICLR. ``"polar_express"``: Amsel et al. (2025), arXiv:2505.16932, coupled.

    Example:
        >>> spd_sqrt(torch.tensor([[5.0, 4.0], [4.0, 5.0]])).tolist()
        [[2.0, 1.0], [1.0, 2.0]]
    """
    require_square("spd_sqrt", a)
    plan = _plan(
        "spd_sqrt",
        carried_dtype("spd_sqrt", a, rounded_to),
        method,
        gradient,
        ridge,
        relative_ridge,
        iterations,
    )
    return _root(a, plan)


@checked
def spd_inv_sqrt(  # noqa: PLR0913 - one matrix, the rest by name
    a: Float[Tensor, "*batch n n"],
    *,
    method: RootMethod = "auto",
    gradient: RootGradient = "exact",
    ridge: float = 0.0,
    relative_ridge: float = 0.0,
    iterations: int | None = None,
    rounded_to: torch.dtype | None = None,
) -> Float[Tensor, "*batch n n"]:
    r"""Symmetric inverse square root: ``Z`` with ``Z (a + ridge) Z = 1``, as whitening needs it.

    Args:
        a: ``(*batch, n, n)`` with ``n >= 1``, symmetric to rounding in its dtype; its symmetric
            part is taken. Batch entries are independent, in value and in gradient.
        method: ``"eigh"`` takes eigenvalues and eigenvectors. ``"newton_schulz"`` and
            ``"polar_express"`` (coupled) use products only; what they have not reached after
            their steps is wrong without a word. ``"mpa"`` ([5/5] Pade) and ``"mtp"`` (Taylor to
            degree 10) are biased: see the note. ``"auto"`` is ``"eigh"``.
        gradient: ``"exact"`` is the derivative of the exact root, evaluated in the eigenbasis,
            whatever the method; it costs an ``eigh`` in backward where the method is another.
            ``"lyapunov"`` is the published iteration of eight steps, right while the smallest
            eigenvalue of the root is above about 10 % of its norm. ``"newton_schulz"`` is autograd
            through the steps of that method.
        ridge: Added to the diagonal.
        relative_ridge: Times the mean eigenvalue ``trace(a) / n``, added to the diagonal, too; the
            derivative goes through it.
        iterations: Steps of ``"newton_schulz"`` (default 15; as published 5) or of
            ``"polar_express"`` (default 8).
        rounded_to: Dtype that ``a`` was stored in before, if coarser than its own. What rounding
            is, in symmetry and around zero, then follows it.

    Returns:
        Same shape, dtype and device as ``a``, symmetric. Computed in float64 on CPU and in
        float32 on an accelerator (float64 stays float64); for ``n >= 64`` and input below
        float64 the last product is in float32. Autocast changes nothing.

    Raises:
        ShapeError: ``a`` is not square, or ``n`` is zero.
        ConfigError: ``a`` is not real floating-point or not symmetric; an unknown ``method`` or
            ``gradient``, or a combination that cannot work; a negative ridge; a ``rounded_to``
            that is no floating-point type.
        NonFiniteError: ``a`` holds NaN or infinity.
        NotPositiveDefiniteError: An eigenvalue of ``a + ridge`` is negative or cannot be told from
            zero: below some 2 eps (in the dtype of ``a``) of the largest. With a ridge, one
            within rounding of zero counts as zero before the ridge is added.
        ConvergenceError: No driver finds the eigenvalues.

    Warns:
        NumericalWarning: ``eigh`` failed for an entry and the SVD was used.

    Note:
        Differentiable any number of times, repeated eigenvalues included: the derivative
        carries ``-1 / (s_i s_j (s_i + s_j))`` with ``s`` the roots of the eigenvalues.
        The bias of ``"mpa"``: with ``x`` an eigenvalue over ``|a|_F``, ``s`` its root and ``r``
        what is computed, ``(r - s) / (r + s) = ((1 - s) / (1 + s))**11``. So every eigenvalue is
        floored near ``|a|_F / 121`` (``"mtp"``: near ``|a|_F / 32``): 25 % off
        at ``x = 0.01``, 200 % at 0.001. It is a hidden ridge. ``torch.vmap``, ``torch.func``
        (``grad``, ``jvp``, ``jacfwd``, ``jacrev``, ``hessian``) and, with graph breaks,
        ``torch.compile`` work. Forward mode over forward mode is refused: torch would give zero.

    Source:
        Derivative: Daleckii and Krein (1965). ``"newton_schulz"``: Li et al. (2018), iSQRT-COV,
        and Huang et al. (2019), IterNorm. ``"mpa"``, ``"mtp"``, ``"lyapunov"``: Song, Sebe and
        Wang (2022), ICLR. ``"polar_express"``: Amsel et al. (2025), arXiv:2505.16932, coupled.

    Example:
        >>> spd_inv_sqrt(torch.diag(torch.tensor([4.0, 0.25]))).tolist()
        [[0.5, 0.0], [0.0, 2.0]]
    """
    require_square("spd_inv_sqrt", a)
    plan = _plan(
        "spd_inv_sqrt",
        carried_dtype("spd_inv_sqrt", a, rounded_to),
        method,
        gradient,
        ridge,
        relative_ridge,
        iterations,
    )
    return _root(a, plan)


def _plan(  # noqa: PLR0913
    function: str,
    dtype: torch.dtype,
    method: RootMethod,
    gradient: RootGradient,
    ridge: float,
    relative_ridge: float,
    iterations: int | None,
) -> RootPlan:
    if not (0 <= ridge < math.inf and 0 <= relative_ridge < math.inf):
        raise ConfigError(
            f"{function} needs finite ridges >= 0, got ridge={ridge} and "
            f"relative_ridge={relative_ridge}; they are added to the eigenvalues, and 0 leaves "
            f"these as they are"
        )
    require_root_settings(function, method, gradient, iterations)
    if iterations is None:
        iterations = DEFAULT_ITERATIONS.get(method, 0)
    if method == "auto":
        # On CPU faster than every other method from 64 to 256, and right: benchmarks/roots.py.
        # Accelerators were not measured; there it is the one that is right.
        method = "eigh"
    return RootPlan(function, dtype, method, gradient, ridge, relative_ridge, iterations)


def _root(a: Tensor, plan: RootPlan) -> Tensor:
    root: Tensor
    with without_autocast(a):
        if plan.method == "eigh" and plan.gradient == "exact":
            return _eigh_root(a, plan)
        p: Tensor = PreparedMatrix.apply(a.to(working_dtype(a)), plan)  # type: ignore[no-untyped-call]
        if plan.gradient == "newton_schulz":
            root = root_of_prepared(p, plan)
        else:
            root = RootOfPrepared.apply(p, plan)  # type: ignore[no-untyped-call]
        return root.to(a.dtype)


# Matrices from this size on take their last products in float32, where the result is float32 or
# less: of five products of float64 three, which cost half. The error is then up to 3e-7 for the
# root and 4e-7 for the gradient (relative Frobenius, 64 to 256, condition 1e6), else 3e-8.
_LARGE = 64


def _product_dtype(a: Tensor) -> torch.dtype:
    if a.dtype != torch.float64 and a.shape[-1] >= _LARGE:
        return torch.float32
    return working_dtype(a)


def _eigh_root(a: Tensor, plan: RootPlan) -> Tensor:
    root: Tensor
    try:
        root = _PlainEighRoot.apply(a, plan)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if not asks_for_transforms(error):
            raise
        root, _, _ = _EighRoot.apply(a, plan)  # type: ignore[no-untyped-call]
    return root


class _EighRoot(torch.autograd.Function):
    """Root by eigenvalues and eigenvectors, with the exact derivative in their basis."""

    @staticmethod
    def forward(a: Tensor, plan: RootPlan) -> tuple[Tensor, Tensor, Tensor]:
        symmetric = symmetric_part(plan.function, a, dtype=plan.dtype).to(working_dtype(a))
        raw, vectors = eigh_each(plan.function, symmetric)
        values, null = positive_values(raw, plan)
        s = values.sqrt()
        # In place: the vectors are ours, and beside a product a new matrix is not free.
        w = vectors.div_(s.unsqueeze(-2)) if plan.inverse else vectors
        root = EigenBasis(w, s, plan.inverse).root(_product_dtype(a)).to(a.dtype)
        # For the derivative exactly zero where nothing tells an eigenvalue from zero.
        return root, w, s if null is None else torch.where(null, 0.0, s)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, RootPlan], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        ctx.plan = inputs[1]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, None]:
        if g is None:
            return None, None
        root, w, s = ctx.saved_tensors
        basis = EigenBasis(w, s, ctx.plan.inverse)
        x = gradient_of_root(g, root, basis, ctx.plan, dtype=_product_dtype(root))
        return with_ridge_gradient(x, ctx.plan).to(root.dtype), None

    @staticmethod
    def jvp(ctx: Any, da: Tensor, _: None) -> tuple[Tensor, None, None]:
        refuse_nested_forward(ctx.plan.function)
        # The map from a change of the matrix to one of its root is its own adjoint.
        root, w, s = ctx.saved_tensors
        change = with_ridge_gradient((da + da.mT) / 2, ctx.plan)
        basis = EigenBasis(w, s, ctx.plan.inverse)
        x = gradient_of_root(change, root, basis, ctx.plan, dtype=_product_dtype(root))
        return x.to(root.dtype), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], a: Tensor, plan: RootPlan
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _EighRoot.apply(a.movedim(in_dims[0], 0), plan)  # type: ignore[no-untyped-call]
        return outputs, (0, 0, 0)


class _PlainEighRoot(torch.autograd.Function):
    """The same for plain tensors: a call of the other kind of Function costs 20 to 100 us more."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, plan: RootPlan) -> Tensor:
        outputs = _EighRoot.forward(a, plan)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*outputs)
        return outputs[0]

    backward = _EighRoot.backward
