"""Slow float64 twins of the kernels in ``orthotrain.linalg``: one matrix, one loop, one formula.

Written from the sources named in the kernels' docstrings and from nothing in the package.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def polar_factor(a: Tensor, *, rtol: float = 1e-12) -> Tensor:
    """Higham (1986): ``Q = sum_i u_i v_i^T`` over the directions that are not null."""
    a = a.double()
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    q = torch.zeros_like(a)
    for i, value in enumerate(s.tolist()):
        if value > rtol * s[0].item():
            q += torch.outer(u[:, i], vh[i])
    return q


def polar_factor_by_newton(a: Tensor, *, steps: int = 60) -> Tensor:
    """Higham (1986), equation 3.3, unscaled: ``X <- (X + X^-T) / 2`` for a square matrix."""
    x = a.double()
    for _ in range(steps):
        x = (x + torch.linalg.inv(x).mT) / 2
    return x


def polar_factor_by_polynomials(
    a: Tensor, polynomials: Sequence[tuple[float, float, float]]
) -> Tensor:
    """``a x + b x^3 + c x^5`` one after the other, applied to each singular value by itself.

    They start divided by the fourth root of the sum of their fourth powers.
    """
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    values = (s / s.pow(4).sum().pow(0.25)).tolist()
    for first, third, fifth in polynomials:
        values = [first * x + third * x**3 + fifth * x**5 for x in values]
    return (u * torch.tensor(values, dtype=torch.float64)) @ vh


def completed_polar_factor(a: Tensor, *, rtol: float) -> tuple[Tensor, Tensor]:
    """``Q`` over the kept directions, and the projection onto their right singular vectors."""
    q = polar_factor(a, rtol=rtol)
    return q, q.mT @ q


def numerical_rank(
    s: Tensor,
    *,
    rtol: float | None = None,
    energy: float | None = None,
    total_energy: float | None = None,
) -> int:
    values = s.double().tolist()
    if rtol is not None:
        return sum(1 for v in values if v >= rtol * values[0] and (v > 0 or rtol == 0))
    assert energy is not None
    total = math.fsum(v * v for v in values) if total_energy is None else total_energy
    for rank in range(len(values) + 1):
        if math.fsum(v * v for v in values[:rank]) >= energy * total:
            return rank
    return sum(1 for v in values if v > 0)


def best_ranks(
    spectra: Sequence[Sequence[float]],
    *,
    costs: Sequence[Callable[[int], int]],
    budget: int,
    min_ranks: Sequence[int],
) -> float:
    """Least sum of relative energies lost by any ranks within the budget, by trying them all."""
    totals = [0.0] + [math.inf] * budget
    for values, cost, low in zip(spectra, costs, min_ranks, strict=True):
        total = math.fsum(v * v for v in values)
        after = [math.inf] * (budget + 1)
        for rank in range(low, len(values) + 1):
            lost = math.fsum(v * v for v in values[rank:]) / total
            for spent in range(budget - cost(rank) + 1):
                after[spent + cost(rank)] = min(after[spent + cost(rank)], totals[spent] + lost)
        totals = after
    return min(totals)


def basis_stability(before: Tensor, after: Tensor) -> float:
    """OIALR, "stability of a basis": mean over columns of the cosine of Q before and after."""
    if before.shape[0] < before.shape[1]:
        before, after = before.mT, after.mT
    q_before, q_after = polar_factor(before), polar_factor(after)
    cosines = []
    for j in range(q_before.shape[1]):
        x, y = q_before[:, j], q_after[:, j]
        cosines.append(float(x @ y) / (math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))))
    return math.fsum(cosines) / len(cosines)


def mixing_similarity(before: Tensor, after: Tensor) -> float:
    """``1 - |R1 - R0| / (|R1| + |R0|)`` with ``R`` by Gram-Schmidt, whose diagonal is positive."""
    if before.shape[0] < before.shape[1]:
        before, after = before.mT, after.mT
    r0, r1 = _gram_schmidt(before.double()), _gram_schmidt(after.double())
    return 1 - float((r1 - r0).norm() / (r1.norm() + r0.norm()))


def _gram_schmidt(a: Tensor) -> Tensor:
    columns = [a[:, j].clone() for j in range(a.shape[1])]
    r = torch.zeros(len(columns), len(columns), dtype=a.dtype)
    for i in range(len(columns)):
        r[i, i] = columns[i].norm()
        direction = columns[i] / r[i, i]
        for j in range(i + 1, len(columns)):
            r[i, j] = direction @ columns[j]
            columns[j] -= r[i, j] * direction
    return r


def condition_number(a: Tensor) -> float:
    """``|A| |A^+|`` in the spectral norm."""
    a = a.double()
    return float(torch.linalg.matrix_norm(a, 2) * torch.linalg.matrix_norm(torch.linalg.pinv(a), 2))


def effective_rank(s: Tensor) -> float:
    """Roy and Vetterli (2007), definition 1."""
    values = s.double().tolist()
    total = math.fsum(values)
    entropy = -math.fsum(v / total * math.log(v / total) for v in values if v > 0)
    return math.exp(entropy)
