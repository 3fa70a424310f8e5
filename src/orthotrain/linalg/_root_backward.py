"""Derivatives of the matrix roots: exact in the eigenbasis.

The square root ``S`` of ``P`` obeys ``S S = P``, so its derivative solves ``dS S + S dS = dP``, and
the gradient ``X`` of an upstream ``G`` solves ``S X + X S = G``. In the eigenbasis of ``S`` this is
a division by ``s_i + s_j``, which is finite wherever eigenvalues repeat.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from orthotrain.linalg._inputs import without_autocast


def exact_gradient(g: Tensor, root: Tensor, vectors: Tensor, s: Tensor, *, inverse: bool) -> Tensor:
    """Gradient at ``P`` of its root (or inverse root), for the upstream ``g``.

    Args:
        g: ``(*batch, n, n)``; its symmetric part counts.
        root: The forward's result, connected to its graph.
        vectors: Eigenvectors of ``P``.
        s: Roots of its eigenvalues, exactly zero in null directions.
        inverse: Whether ``root`` is the inverse root.
    """
    with without_autocast(g):
        if not torch.is_grad_enabled():
            return _in_eigenbasis(g, vectors, s, inverse=inverse)
        if not inverse:
            return _solve(root, g, vectors, s)
        # With Z = P^-1/2 and Z Z = P^-1: Z dZ + dZ Z = -P^-1 dP P^-1.
        y = _solve(root, g, vectors, 1 / s)
        return -(root @ (root @ y @ root) @ root)


def _in_eigenbasis(g: Tensor, vectors: Tensor, s: Tensor, *, inverse: bool) -> Tensor:
    inner = vectors.mT @ g @ vectors
    sums = s.unsqueeze(-1) + s.unsqueeze(-2)
    if inverse:
        z = 1 / s
        inner = inner * (-0.5 * z).unsqueeze(-1) * z.unsqueeze(-2)
    else:
        # Both directions null: the derivative does not exist, and nothing is given along it.
        sums = torch.where(sums > 0, sums, torch.inf)
        inner = inner * 0.5
    return vectors @ ((inner + inner.mT) / sums) @ vectors.mT


def _solve(root: Tensor, g: Tensor, vectors: Tensor, s: Tensor) -> Tensor:
    x: Tensor = _LyapunovSolution.apply(root, g, vectors, s)  # type: ignore[no-untyped-call]
    return x


class _LyapunovSolution(torch.autograd.Function):
    """``X`` with ``S X + X S = (G + G^T) / 2``, from the eigenpairs of ``S``; differentiable.

    The derivative of such a solution is again such a solution, so derivatives of every order
    stay finite at repeated eigenvalues.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(root: Tensor, g: Tensor, vectors: Tensor, s: Tensor) -> Tensor:
        with without_autocast(g):
            return _in_eigenbasis(g, vectors, s, inverse=False)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        root, _, vectors, s = inputs
        ctx.save_for_backward(root, output, vectors, s)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, None, None]:
        root, x, vectors, s = ctx.saved_tensors
        with without_autocast(h):
            y = _solve(root, h, vectors, s)
            product = y @ x
            return -(product + product.mT), y, None, None
