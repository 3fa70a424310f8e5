"""Slow float64 twins of the matrix roots and of the named gradients: one matrix, one formula.

Written from the papers' formulas and from nothing in the package.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from reference.matrices import orthonormal


def spd(values: Tensor | list[float], *, seed: int = 0) -> Tensor:
    """Symmetric ``(n, n)`` float64 with the given eigenvalues, exactly symmetric."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q = orthonormal(len(values), len(values), seed=seed)
    a = (q * values) @ q.mT
    return (a + a.mT) / 2


def matrix_function(a: Tensor, function: Callable[[float], float]) -> Tensor:
    """``sum_i f(l_i) v_i v_i^T``."""
    values, vectors = torch.linalg.eigh(a.double())
    total = torch.zeros_like(vectors)
    for i, value in enumerate(values.tolist()):
        total += function(value) * torch.outer(vectors[:, i], vectors[:, i])
    return total


def sqrt(a: Tensor) -> Tensor:
    return matrix_function(a, lambda x: math.sqrt(max(x, 0.0)))


def inv_sqrt(a: Tensor) -> Tensor:
    return matrix_function(a, lambda x: 1 / math.sqrt(x))


def sqrt_gradient(a: Tensor, g: Tensor) -> Tensor:
    """``S X + X S = (G + G^T) / 2`` as one linear system of ``n^2`` equations: no eigenvector."""
    s = sqrt(a).contiguous()
    eye = torch.eye(len(s), dtype=s.dtype)
    system = torch.kron(s, eye) + torch.kron(eye, s)
    right = ((g + g.mT) / 2).double().reshape(-1)
    return torch.linalg.solve(system, right).reshape(s.shape)


def inv_sqrt_gradient(a: Tensor, g: Tensor) -> Tensor:
    """``S X + X S = -Z G_s Z`` with ``S = a^1/2`` and ``Z = a^-1/2``, as one linear system."""
    z = inv_sqrt(a)
    return sqrt_gradient(a, -z @ ((g + g.mT) / 2).double() @ z)


def finite_difference(function: Callable[[Tensor], Tensor], a: Tensor, h: Tensor) -> Tensor:
    """Derivative along ``h`` by central differences of fourth order."""
    step = 1e-3 * float(torch.linalg.eigvalsh(a).abs().min()) / float(h.norm())
    near = function(a + step * h) - function(a - step * h)
    far = function(a + 2 * step * h) - function(a - 2 * step * h)
    return (8 * near - far) / (12 * step)


def newton_schulz(a: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """iSQRT-COV (Li et al. 2018), equations 3 to 5: square root and inverse."""
    trace = float(a.trace())
    y, z = a.double() / trace, torch.eye(len(a), dtype=torch.float64)
    three = 3 * torch.eye(len(a), dtype=torch.float64)
    for _ in range(iterations):
        t = (three - z @ y) / 2
        y, z = y @ t, t @ z
    return math.sqrt(trace) * y, z / math.sqrt(trace)


def binomial(power: Fraction, k: int) -> Fraction:
    """Generalized binomial coefficient."""
    value = Fraction(1)
    for i in range(k):
        value *= (power - i) / (i + 1)
    return value


def taylor_root(a: Tensor, *, power: Fraction, degree: int = 10) -> Tensor:
    """MTP: ``(1 - z)^power`` term by term in ``z = 1 - a / |a|_F``."""
    norm = float(a.norm())
    eye = torch.eye(len(a), dtype=torch.float64)
    z = eye - a.double() / norm
    total, term = torch.zeros_like(eye), eye
    for k in range(degree + 1):
        total = total + float((-1) ** k * binomial(power, k)) * term
        term = term @ z
    return total * norm ** float(power)


def pade_coefficients(series: list[Fraction], order: int) -> tuple[list[Fraction], list[Fraction]]:
    """``p / q`` of order [order/order] that agrees with a series, exactly; ``q_0 = 1``."""
    rows = [
        [series[order + i - j] for j in range(1, order + 1)] + [-series[order + i]]
        for i in range(1, order + 1)
    ]
    for i in range(order):
        pivot = next(r for r in range(i, order) if rows[r][i] != 0)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for r in range(order):
            if r != i:
                rows[r] = [x - rows[r][i] * y for x, y in zip(rows[r], rows[i], strict=True)]
    q = [Fraction(1), *(row[-1] for row in rows)]
    p = [sum((q[j] * series[k - j] for j in range(k + 1)), Fraction(0)) for k in range(order + 1)]
    return p, q


def pade_root(a: Tensor) -> Tensor:
    """MPA: ``q(Z)^-1 p(Z)`` with the [5/5] Pade approximant of ``sqrt(1 - z)``."""
    series = [(-1) ** k * binomial(Fraction(1, 2), k) for k in range(11)]
    p, q = pade_coefficients(series, 5)
    norm = float(a.norm())
    eye = torch.eye(len(a), dtype=torch.float64)
    z = eye - a.double() / norm
    top, bottom, term = torch.zeros_like(eye), torch.zeros_like(eye), eye
    for k in range(6):
        top, bottom, term = top + float(p[k]) * term, bottom + float(q[k]) * term, term @ z
    return math.sqrt(norm) * torch.linalg.solve(bottom, top)


def inverse_pade_root(a: Tensor) -> Tensor:
    """``p(Z)^-1 q(Z)``, the same approximant upside down."""
    return torch.linalg.inv(pade_root(a))


def lyapunov_gradient(root: Tensor, g: Tensor, *, steps: int = 8) -> Tensor:
    """Song, Sebe and Wang (2022), the backward pass: ``B X + X B = C`` by the sign iteration."""
    norm = float(root.norm())
    eye = torch.eye(len(root), dtype=torch.float64)
    b, c = root.double() / norm, g.double() / norm
    for _ in range(steps):
        c = (c @ (3 * eye - b @ b) - b @ b @ c + b @ c @ b) / 2
        b = b @ (3 * eye - b @ b) / 2
    return c / 2


def factor(larger: float, smaller: float, gradient: str) -> float:
    """What stands for ``1 / (larger - smaller)``, by the series it is named after."""
    r = smaller / larger
    match gradient:
        case "taylor":
            return math.fsum(r**k for k in range(101)) / larger
        case "power_iteration":
            return math.fsum(r**k for k in range(20)) / larger
        case "truncated":
            return min(1 / (larger - smaller), 1e10) if larger > smaller else 1e10
        case "pade":
            return 1 / (larger - smaller) if larger > smaller else 1 / (larger * 2.0**-52)
    raise ValueError(gradient)


def eigenvector_gradient(a: Tensor, g: Tensor, gradient: str) -> Tensor:
    """``U (K^T o (U^T dU)) U^T`` with factors pair by pair, made symmetric."""
    values, vectors = torch.linalg.eigh(a.double())
    inner = vectors.mT @ g.double()
    for i in range(len(a)):
        for j in range(len(a)):
            if i == j:
                k = 0.0
            elif i < j:  # ascending: j is the larger
                k = factor(float(values[j]), float(values[i]), gradient)
            else:
                k = -factor(float(values[i]), float(values[j]), gradient)
            inner[i, j] *= k
    x = vectors @ inner @ vectors.mT
    return (x + x.mT) / 2


def top_vector_gradient_by_power_iteration(a: Tensor, g: Tensor, *, terms: int = 20) -> Tensor:
    """Wang et al. (2019): of the leading eigenvector, by powers of ``a`` behind its projector."""
    values, vectors = torch.linalg.eigh(a.double())
    largest, v = float(values[-1]), vectors[:, -1:]
    power = (torch.eye(len(a), dtype=torch.float64) - v @ v.mT) / largest
    total = torch.zeros_like(power)
    for _ in range(terms):
        total = total + power
        power = a.double() @ power / largest
    x = total @ g.double().reshape(-1, 1) @ v.mT
    return (x + x.mT) / 2
