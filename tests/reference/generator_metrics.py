"""Slow float64 twins of the generator metrics and of the penalties: loops over single entries.

Written from the papers' formulas and from nothing in the package.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reference.spd_root import sqrt

# --- latents --------------------------------------------------------------------------------------


def activeness(generate: Callable[[Tensor], Tensor], z: Tensor, values: Sequence[float]) -> Tensor:
    """Mean over latents and pixels of the unbiased variance, one pixel at a time."""
    found = []
    for dim in range(z.shape[1]):
        variances = []
        for row in z:
            images = []
            for value in values:
                moved = row.clone()
                moved[dim] = value
                images.append(generate(moved[None])[0].double().flatten())
            for pixel in torch.stack(images).T.tolist():
                mean = math.fsum(pixel) / len(pixel)
                variances.append(math.fsum((x - mean) ** 2 for x in pixel) / (len(pixel) - 1))
        found.append(math.fsum(variances) / len(variances))
    return torch.tensor(found, dtype=torch.float64)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The great circle by its textbook formula, the radius by a straight line."""
    p, q = a.double() / a.double().norm(), b.double() / b.double().norm()
    angle = math.acos(max(-1.0, min(1.0, float(p @ q))))
    radius = (1 - t) * float(a.double().norm()) + t * float(b.double().norm())
    turned = math.sin((1 - t) * angle) / math.sin(angle) * p
    return radius * (turned + math.sin(t * angle) / math.sin(angle) * q)


def mean_squared_speed(dim: int) -> float:
    """``E |s'(t)|^2`` of ``slerp`` between normal latents of length ``dim``, ``t`` even in [0, 1].

    ``|s'|^2 = (r_2 - r_1)^2 + r(t)^2 theta^2``; radii and angle are independent.
    """
    mean_radius = math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    radial = 2 * (dim - mean_radius**2)
    # E (1-t)^2 + t^2 = 2/3, and E 2 t (1-t) = 1/3.
    squared_radius = 2 / 3 * dim + 1 / 3 * mean_radius**2
    # The angle of two random directions has density sin^(dim - 2).
    steps = 200_000
    angles = [math.pi * (i + 0.5) / steps for i in range(steps)]
    weights = [math.sin(x) ** (dim - 2) for x in angles]
    squared_angle = math.fsum(w * x * x for w, x in zip(weights, angles, strict=True))
    return radial + squared_radius * squared_angle / math.fsum(weights)


def sefa(w: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``(latent, features)``: eigenvalues falling, and projectors on each eigenvector."""
    w = w.double()
    gram = torch.zeros(len(w), len(w), dtype=torch.float64)
    for column in w.T:
        norm = float(column.norm())
        if norm > 0:
            gram += torch.outer(column / norm, column / norm)
    values, vectors = torch.linalg.eigh(gram)
    projectors = [torch.outer(v, v) for v in vectors.T.flip(0)]
    return values.flip(0), torch.stack(projectors)


def reflections(vectors: Tensor) -> Tensor:
    """``H_1 H_2 ... H_k``, each as a full matrix."""
    n = len(vectors)
    product = torch.eye(n, dtype=torch.float64)
    for v in vectors.double().T:
        product = product @ (
            torch.eye(n, dtype=torch.float64) - 2 * torch.outer(v, v) / float(v @ v)
        )
    return product


# --- sets of features -----------------------------------------------------------------------------


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Heusel et al. (2017), equation 6, with a root of ``A^1/2 B A^1/2``."""
    a, b = a.double(), b.double()
    root = sqrt(torch.cov(a.T).reshape(a.shape[1], -1))
    other = torch.cov(b.T).reshape(a.shape[1], -1)
    cross = sqrt(root @ other @ root)
    apart = float((a.mean(dim=0) - b.mean(dim=0)).square().sum())
    return apart + float((root @ root).trace() + other.trace() - 2 * cross.trace())


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Gretton et al. (2012), equation 3, pair by pair."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    a, b = a.double(), b.double()
    n, m = len(a), len(b)
    within = math.fsum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j)
    other = math.fsum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j)
    mixed = math.fsum(kernel(x, y) for x in a for y in b)
    return within / (n * (n - 1)) + other / (m * (m - 1)) - 2 * mixed / (n * m)


def radius(points: Tensor, i: int, k: int) -> float:
    """Distance of point ``i`` to its k-th nearest other point."""
    others = [float((points[i] - points[j]).norm()) for j in range(len(points)) if j != i]
    return sorted(others)[k - 1]


def inside(point: Tensor, points: Tensor, k: int) -> bool:
    """Kynkaanniemi et al. (2019), equation 1."""
    return any(
        float((point - points[i]).norm()) <= radius(points, i, k) for i in range(len(points))
    )


def precision_recall(real: Tensor, fake: Tensor, *, k: int) -> tuple[float, float]:
    real, fake = real.double(), fake.double()
    precision = sum(inside(x, real, k) for x in fake) / len(fake)
    return precision, sum(inside(x, fake, k) for x in real) / len(real)


def density_coverage(real: Tensor, fake: Tensor, *, k: int) -> tuple[float, float]:
    """Naeem et al. (2020), equations 4 and 5, with open balls."""
    real, fake = real.double(), fake.double()
    hits = [
        [float((x - real[i]).norm()) < radius(real, i, k) for x in fake] for i in range(len(real))
    ]
    density = sum(map(sum, hits)) / (k * len(fake))
    return density, sum(any(row) for row in hits) / len(real)


# --- penalties ------------------------------------------------------------------------------------


def every_sign(dim: int) -> list[Tensor]:
    """All vectors of entries -1 and 1."""
    return [
        torch.tensor(signs, dtype=torch.float64) for signs in itertools.product((-1, 1), repeat=dim)
    ]


def variance(values: Sequence[float], *, unbiased: bool) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((x - mean) ** 2 for x in values) / (len(values) - int(unbiased))


def hessian_penalty(function: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor) -> float:
    """Peebles et al. (2020), equation 5, from the Hessian of every output at every row."""
    largest = 0.0
    for n, row in enumerate(z):
        outputs = function(row[None])[0].flatten()
        for i in range(len(outputs)):
            hessian = torch.autograd.functional.hessian(
                lambda x, i=i: function(x[None])[0].flatten()[i], row
            )
            seconds = [float(v[n] @ hessian @ v[n]) for v in directions]
            largest = max(largest, variance(seconds, unbiased=True))
    return largest


def orojar(function: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor) -> float:
    """Wei et al. (2021): from the Jacobian at every row."""
    largest = 0.0
    for n, row in enumerate(z):
        jacobian = torch.autograd.functional.jacobian(lambda x: function(x[None])[0].flatten(), row)
        lengths = [float((jacobian @ v[n]).square().sum()) for v in directions]
        largest = max(largest, variance(lengths, unbiased=True))
    return largest
