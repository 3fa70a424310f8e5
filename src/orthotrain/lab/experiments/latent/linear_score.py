"""How near a linear generator came to Gaussian data, and to its principal directions."""

from __future__ import annotations

from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.disentangle import random_rotation, sefa_directions
from orthotrain.lab.experiments.latent.sources import GaussianSource
from orthotrain.linalg import spd_sqrt
from orthotrain.models.linear_gan import LinearGenerator


@torch.no_grad()
def linear_scores(
    generator: LinearGenerator,
    source: GaussianSource,
    *,
    seed: int,
    directions: Float[Tensor, "k k"] | None = None,
) -> dict[str, float]:
    """Scores of a linear generator, in closed form and in float64.

    Args:
        generator: The trained generator.
        source: What it imitates.
        seed: Of the rotation that is the floor.
        directions: Orthogonal, one per row, along which ``z`` is moved; None are its axes.

    Returns:
        - ``frechet``: Frechet distance between what it makes and the data, 0 at best.
        - ``alignment``: what each move of ``z`` adds, a row of ``U`` along an axis, against the
          principal directions of the data, see :func:`alignment`; 1 at best.
        - ``alignment_sefa``: the same for what a move along each SeFa direction adds.
        - ``alignment_rotated``: the same for its directions after a random rotation of ``z``.
        - ``orthonormality_error``: ``|U U^T - 1|_F``.
    """
    u = generator.subspace.u.double().cpu()
    weight = generator.subspace.scale.double().cpu()[:, None] * u
    principal = source.directions.double()
    sefa, _ = sefa_directions(weight, latent_axis=0)
    rotation = random_rotation(len(u), seed=seed)
    return {
        "frechet": _frechet(generator, source),
        "alignment": alignment(weight if directions is None else directions @ weight, principal),
        "alignment_sefa": alignment(sefa @ weight, principal),
        "alignment_rotated": alignment(rotation @ weight, principal),
        "orthonormality_error": float(generator.subspace.orthonormality_error()),
    }


def alignment(directions: Float[Tensor, "k n"], principal: Float[Tensor, "p n"]) -> float:
    """Mean ``|cos|`` between directions and the principal ones, each used once.

    Of all pairings the one with the largest sum, found by trying each: for few directions. 1
    where every direction is a principal one.
    """
    unit = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-300)
    cosines = (unit @ principal.mT).abs()
    rows = torch.arange(len(unit))
    pairings = permutations(range(len(principal)), len(unit))
    return max(float(cosines[rows, torch.tensor(columns)].mean()) for columns in pairings)


def _frechet(generator: LinearGenerator, source: GaussianSource) -> float:
    """``|m|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))``."""
    a, b = source.covariance(), generator.covariance().cpu()
    root = spd_sqrt(a)
    inner = root @ b @ root
    cross = spd_sqrt((inner + inner.mT) / 2)
    mean = generator.subspace.mean.double().square().sum()
    return float(mean.cpu() + (a + b - 2 * cross).trace())
