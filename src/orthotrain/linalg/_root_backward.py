"""Derivatives of the matrix roots: exact in the eigenbasis, or the published Lyapunov iteration.

The square root ``S`` of ``P`` obeys ``S S = P``, so its derivative solves ``dS S + S dS = dP``, and
the gradient ``X`` of an upstream ``G`` solves ``S X + X S = G``. In the eigenbasis of ``S`` this is
a division by ``s_i + s_j``, which is finite wherever eigenvalues repeat.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthotrain.errors import NumericalWarning
from orthotrain.linalg._inputs import without_autocast
from orthotrain.linalg._root_checks import RootPlan

# As published: eight steps, each of which raises a small eigenvalue of the root by 1.5. They reach
# one of 1.5**-8 = 4 % of its norm, and are right from about 10 % on: error 17 % where it is 4 %,
# 11 % at 5 %, .1 % at 10 % (4x4, the other three equal).
LYAPUNOV_STEPS = 8


class EigenBasis(NamedTuple):
    """Eigenpairs of ``P``, as its root needs them.

    Attributes:
        w: Eigenvectors as columns; divided by ``s`` for the inverse root.
        s: ``(*batch, n)`` roots of the eigenvalues; exactly zero in null directions.
        inverse: Whether the inverse root is wanted.
    """

    w: Tensor
    s: Tensor
    inverse: bool

    def root(self, dtype: torch.dtype) -> Tensor:
        """The (inverse) root, its last product in ``dtype``; symmetric."""
        half = self.w.to(dtype) * self.s.sqrt().unsqueeze(-2).to(dtype)
        return half @ half.mT


def exact_gradient(g: Tensor, basis: EigenBasis, dtype: torch.dtype) -> Tensor:
    """Gradient at ``P`` of its root (or inverse root), for the upstream ``g``; no derivative.

    Args:
        g: ``(*batch, n, n)``; its symmetric part counts.
        basis: The eigenpairs of ``P``.
        dtype: Of the last products.
    """
    w = basis.w
    # In full precision: an upstream gradient may be small just where the division is by little.
    # In this order the two products take 9 % less, for w is stored by columns (256x256, MKL).
    inner = (w.mT @ (g.to(w.dtype) @ w)).to(dtype)
    inner = inner + inner.mT
    # At P^1/2: S X + X S = G_s. At Z = P^-1/2: Z Y + Y Z = G_s and X = -P^-1 Y P^-1; with the
    # columns of w divided by s that is the same division, by -(z_i + z_j).
    terms = (-2 / basis.s if basis.inverse else 2 * basis.s).to(dtype)
    outward = w.to(dtype)
    return outward @ inner.div_(_sums(terms, maybe_zero=not basis.inverse)) @ outward.mT


def differentiable_gradient(g: Tensor, root: Tensor, basis: EigenBasis) -> Tensor:
    """The same with a derivative of its own, for ``create_graph``; ``root`` holds the graph."""
    if not basis.inverse:
        return _solve(root, g, basis.w, basis.s)
    vectors = basis.w * basis.s.unsqueeze(-2)
    # The value from the eigenbasis, the graph from the root, which may be rounded.
    z = basis.w @ vectors.mT + (root - root.detach())
    y = _solve(z, g, vectors, 1 / basis.s)
    return -(z @ (z @ y @ z) @ z)


def _sums(terms: Tensor, *, maybe_zero: bool = False) -> Tensor:
    """``t_i + t_j``; infinite where both are zero, so that nothing is given along it."""
    sums = terms.unsqueeze(-1) + terms.unsqueeze(-2)
    # On CPU a `where` costs as much as a matrix product.
    if maybe_zero and has_zero(terms) is not False:
        return torch.where(sums == 0, torch.inf, sums)
    return sums


def has_zero(values: Tensor) -> bool | None:
    """Whether any entry is zero; None where nobody can know, under ``torch.vmap``."""
    try:
        return not bool(values.all())
    except RuntimeError:
        return None


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
            inner = vectors.mT @ g @ vectors
            return vectors @ ((inner + inner.mT) / _sums(2 * s, maybe_zero=True)) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        root, _, vectors, s = inputs
        ctx.save_for_backward(root, output, vectors, s)
        ctx.save_for_forward(root, output, vectors, s)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, None, None]:
        root, x, vectors, s = ctx.saved_tensors
        with without_autocast(h):
            y = _solve(root, h, vectors, s)
            product = y @ x
            return -(product + product.mT), y, None, None

    @staticmethod
    def jvp(ctx: Any, d_root: Tensor, dg: Tensor, *_: None) -> Tensor:
        root, x, vectors, s = ctx.saved_tensors
        with without_autocast(dg):
            return _solve(root, dg - d_root @ x - x @ d_root, vectors, s)


def lyapunov_gradient(g: Tensor, p: Tensor, root: Tensor, *, inverse: bool) -> Tensor:
    """The published gradient: ``B X + X B = C`` by eight steps of the sign iteration.

    ``B = P^1/2``, ``C = G``; for the inverse root ``C = -P^-1/2 G P^-1/2``. The norm of ``B`` is
    that of each matrix by itself.

    Source:
        Song, Sebe and Wang (2022), "Fast differentiable matrix square root", ICLR.
    """
    with without_autocast(g):
        g = (g + g.mT) / 2
        b = p @ root if inverse else root
        c = -(root @ g @ root) if inverse else g
        norm = torch.linalg.vector_norm(b, dim=(-2, -1), keepdim=True)
        norm = torch.where(norm > 0, norm, 1.0)
        b, c = b / norm, c / norm
        eye3 = 3 * torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        for _ in range(LYAPUNOV_STEPS):
            square = b @ b
            rest = eye3 - square
            c = (c @ rest - square @ c + b @ c @ b) / 2
            b = b @ rest / 2
        return (c + c.mT) / 4


def gradient_of_root(
    g: Tensor, root: Tensor, basis: EigenBasis, plan: RootPlan, *, dtype: torch.dtype
) -> Tensor:
    """The exact gradient, with a warning where a null direction has none."""
    if not basis.inverse and has_zero(basis.s):
        warnings.warn(
            f"{plan.function}: {int((basis.s == 0).sum())} of {basis.s.numel()} eigenvalues are "
            f"null, and the derivative does not exist there; it was set to zero between null "
            f"directions. Add a ridge for a derivative everywhere",
            NumericalWarning,
            stacklevel=2,
        )
    with without_autocast(g):
        if torch.is_grad_enabled():
            work = basis.w.dtype
            return differentiable_gradient(g.to(work), root.to(work), basis)
        return exact_gradient(g, basis, dtype)
