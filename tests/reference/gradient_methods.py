"""Slow float64 twins of the gradient methods: one matrix, one loop, one formula.

Written from the papers and from the definitions in the methods' docstrings, and from nothing in
the package. ``twin_step`` is what one optimizer step with methods amounts to, by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.linalg import polar_factor

# --- matrices of a weight ---------------------------------------------------------------------


def matrices_of(weight: Tensor, *, groups: int = 1, transposed: bool = False) -> list[Tensor]:
    """One (outputs, everything else) matrix a group, copied entry by entry."""
    weight = weight.double()
    taps = weight[0, 0].numel()
    found = []
    for group in range(groups):
        inputs_first = weight.shape[0] // groups
        if transposed:
            rows, inputs = weight.shape[1], inputs_first
        else:
            rows, inputs = inputs_first, weight.shape[1]
        matrix = torch.zeros(rows, inputs * taps, dtype=torch.float64)
        for o in range(rows):
            for i in range(inputs):
                if transposed:
                    kernel = weight[group * inputs + i, o]
                else:
                    kernel = weight[group * rows + o, i]
                matrix[o, i * taps : (i + 1) * taps] = kernel.flatten()
        found.append(matrix)
    return found


def weight_of(
    matrices: Sequence[Tensor], shape: Sequence[int], *, transposed: bool = False
) -> Tensor:
    """The inverse of ``matrices_of``."""
    weight = torch.zeros(tuple(shape), dtype=torch.float64)
    taps = weight[0, 0].numel()
    for group, matrix in enumerate(matrices):
        rows = matrix.shape[0]
        inputs = matrix.shape[1] // taps
        for o in range(rows):
            for i in range(inputs):
                kernel = matrix[o, i * taps : (i + 1) * taps].reshape(weight.shape[2:])
                if transposed:
                    weight[group * inputs + i, o] = kernel
                else:
                    weight[group * rows + o, i] = kernel
    return weight


# --- NOG --------------------------------------------------------------------------------------


def nearest_orthogonal(g: Tensor, *, scale: str = "none", rtol: float = 1e-12) -> Tensor:
    """``R = U V^T`` of one matrix, times what ``scale`` asks for."""
    r = polar_factor(g, rtol=rtol)
    if scale == "rms":
        return 0.2 * math.sqrt(max(g.shape)) * r
    if scale == "gradient_norm" and float(r.norm()) > 0:
        return float(g.norm()) / float(r.norm()) * r
    return r


# --- OLR --------------------------------------------------------------------------------------


def optimal_lr(w: Tensor, g: Tensor) -> float | None:
    """``(w.w)(l.w) / ((w.w)(l.l) + 2 (l.w)^2)``, sums by ``fsum``."""
    ws, ls = w.double().flatten().tolist(), g.double().flatten().tolist()
    ww = math.fsum(a * a for a in ws)
    ll = math.fsum(b * b for b in ls)
    lw = math.fsum(a * b for a, b in zip(ws, ls, strict=True))
    below = ww * ll + 2 * lw**2
    if below == 0:
        return None
    eta = ww * lw / below
    return eta if eta > 0 else None


def defect(w: Tensor) -> float:
    """``|W^T W - 1|_F^2`` on the smaller side, summed entry by entry."""
    w = w.double() if w.shape[0] >= w.shape[1] else w.double().mT
    total = 0.0
    for i in range(w.shape[1]):
        for j in range(w.shape[1]):
            total += (float(w[:, i] @ w[:, j]) - (i == j)) ** 2
    return total


def optimal_lr_matrix(
    ws: Sequence[Tensor], ls: Sequence[Tensor], *, low: float, high: float
) -> float:
    """Least total defect of ``W - eta L`` over an interval: a grid, then golden sections."""

    def total(eta: float) -> float:
        return sum(_fast_defect(w - eta * g) for w, g in zip(ws, ls, strict=True))

    grid = [low + (high - low) * i / 100 for i in range(101)]
    best = min(range(101), key=lambda i: total(grid[i]))
    left, right = grid[max(best - 1, 0)], grid[min(best + 1, 100)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(45):
        x, y = right - golden * (right - left), left + golden * (right - left)
        left, right = (left, y) if total(x) < total(y) else (x, right)
    ends = [low, high, (left + right) / 2]
    return min(ends, key=total)


def _fast_defect(w: Tensor) -> float:
    w = w.double() if w.shape[0] >= w.shape[1] else w.double().mT
    return float((w.mT @ w - torch.eye(w.shape[1], dtype=w.dtype)).square().sum())


# --- the others -------------------------------------------------------------------------------


def penalty_gradient(w: Tensor) -> Tensor:
    """Of ``|W^T W - 1|_F^2`` on the smaller side, by autograd."""
    w = w.detach().double().requires_grad_()
    tall = w if w.shape[0] >= w.shape[1] else w.mT
    loss = (tall.mT @ tall - torch.eye(tall.shape[1], dtype=w.dtype)).square().sum()
    (gradient,) = torch.autograd.grad(loss, w)
    return gradient


def nearest_multiple(w: Tensor) -> Tensor:
    """The nearest multiple of an orthonormal matrix: the polar factor times the mean of ``s``."""
    return float(torch.linalg.svdvals(w.double()).mean()) * polar_factor(w)


# --- a step by hand ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What is done to one weight around a step; ``None`` leaves a part out."""

    penalty: float | None = None
    nog: str | None = None  # "gradient" or "update"
    scale: str = "none"
    olr: str | None = None  # "vector" or "matrix"
    direction: str = "gradient"
    floor: float = 0.0
    after: str | None = None  # "spectral", "orthonormal" or "norm"
    groups: int = 1
    transposed: bool = False


def twin_step(
    weight: Tensor,
    gradient: Tensor,
    settings: Settings,
    *,
    lr: float,
    first_norm: float,
    optimizer_step: Callable[[Tensor], Tensor],
) -> Tensor:
    """The weight after one step; ``optimizer_step`` gives the optimizer's, from a gradient."""

    def each(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        parts = matrices_of(tensor, groups=settings.groups, transposed=settings.transposed)
        return weight_of(
            [change(part) for part in parts], tensor.shape, transposed=settings.transposed
        )

    if settings.penalty is not None:
        gradient = gradient + settings.penalty * each(weight, penalty_gradient)
    if settings.nog == "gradient":
        gradient = each(gradient, lambda g: nearest_orthogonal(g, scale=settings.scale))
    after = optimizer_step(gradient)
    if settings.nog == "update":
        by = 1.0 if settings.scale == "gradient_norm" else lr
        delta = each(after - weight, lambda d: by * nearest_orthogonal(d, scale=settings.scale))
        after = weight + delta
    if settings.olr is not None:
        direction = gradient if settings.direction == "gradient" else (weight - after) / lr
        eta = _rate(weight, direction, settings, lr)
        if eta is not None and eta < lr:
            eta = max(eta, settings.floor * lr)
            after = weight + eta / lr * (after - weight)
    if settings.after == "spectral":
        after = each(after, lambda w: w / float(torch.linalg.matrix_norm(w, 2)))
    if settings.after == "orthonormal":
        after = each(after, nearest_multiple)
    if settings.after == "norm":
        after = after * first_norm / float(after.norm())
    return after


def _rate(weight: Tensor, direction: Tensor, settings: Settings, lr: float) -> float | None:
    if settings.olr == "vector":
        return optimal_lr(weight, direction)
    kind = {"groups": settings.groups, "transposed": settings.transposed}
    return optimal_lr_matrix(
        matrices_of(weight, **kind),
        matrices_of(direction, **kind),
        low=settings.floor * lr,
        high=lr,
    )
