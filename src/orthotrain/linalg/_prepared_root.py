"""Roots of matrices that were checked and have their ridge, by methods that see no eigenvalues."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotrain.linalg._inputs import refuse_nested_forward
from orthotrain.linalg._root_backward import EigenBasis, gradient_of_root, lyapunov_gradient
from orthotrain.linalg._root_checks import RootPlan, singular_rtol
from orthotrain.linalg._root_forward import iterated_root
from orthotrain.linalg._symmetric import eigh_each


class RootOfPrepared(torch.autograd.Function):
    """Root by any method, with a derivative that does not go through the method's steps."""

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, plan: RootPlan) -> Tensor:
        """The root."""
        return root_of_prepared(p, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, RootPlan], output: Tensor) -> None:
        """Keep the matrix and its root."""
        p, ctx.plan = inputs
        ctx.save_for_backward(p, output)
        ctx.save_for_forward(p, output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """The gradient that the plan names."""
        plan: RootPlan = ctx.plan
        p, root = ctx.saved_tensors
        if plan.gradient == "lyapunov":
            return lyapunov_gradient(g, p, root, inverse=plan.inverse), None
        with torch.no_grad():
            # Detached, for no_grad does not hold forward mode back.
            basis = _without_null(_basis_of_prepared(p.detach(), plan), plan)
        return gradient_of_root(g, root, basis, plan, dtype=p.dtype), None

    @staticmethod
    def jvp(ctx: Any, dp: Tensor, _: None) -> Tensor:
        """The same map, which is its own adjoint."""
        refuse_nested_forward(ctx.plan.function)
        return RootOfPrepared.backward(ctx, (dp + dp.mT) / 2)[0]


def root_of_prepared(p: Tensor, plan: RootPlan) -> Tensor:
    """The root by the method of the plan; autograd can go through those that iterate."""
    assert plan.method != "auto"
    if plan.method == "eigh":
        return _basis_of_prepared(p, plan).root(p.dtype)
    root = iterated_root(p, plan.method, plan.iterations, inverse=plan.inverse)
    return (root + root.mT) / 2


def _basis_of_prepared(p: Tensor, plan: RootPlan) -> EigenBasis:
    """Of a matrix that was checked and has its ridge."""
    values, vectors = eigh_each(plan.function, p)
    s = values.clamp(min=0).sqrt()
    w = vectors / s.unsqueeze(-2) if plan.inverse else vectors
    return EigenBasis(w, s, plan.inverse)


def _without_null(basis: EigenBasis, plan: RootPlan) -> EigenBasis:
    """Roots exactly zero where nothing tells an eigenvalue from zero."""
    if plan.inverse:
        return basis
    limit = singular_rtol(plan.dtype, basis.s.dtype) ** 0.5
    kept = basis.s > limit * basis.s[..., -1:]
    return basis._replace(s=torch.where(kept, basis.s, 0.0))
