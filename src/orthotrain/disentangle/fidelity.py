"""Frechet and kernel distance in a named feature space, with real against real beside them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.disentangle._codes import require_count
from orthotrain.disentangle._feature_sets import require_feature_sets
from orthotrain.disentangle._generator import stream
from orthotrain.disentangle.coverage import density_coverage, precision_recall
from orthotrain.errors import ShapeError
from orthotrain.linalg import spd_sqrt

# Rows of a kernel matrix at a time.
_ROWS = 1024


def frechet_distance(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    r"""Squared Frechet distance of two Gaussians with the means and covariances of the sets.

    ``|mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)``. In Inception features this
    is called FID; in others it must not be.

    Args:
        real: Features ``(n, d)`` with ``n >= 2``.
        fake: Features ``(m, d)`` with ``m >= 2``.

    Returns:
        A float64 scalar, not negative, and zero up to rounding for a set with itself.

    Raises:
        ShapeError: Not ``(n, d)``, sets of different width, or fewer than two samples.
        ConfigError: Not real floating-point.
        NonFiniteError: A feature is NaN or infinite.

    Note:
        Biased upwards, the more so the fewer the samples: compare at one ``n`` only, beside the
        distance of real images to other real ones. Covariances of fewer samples than features are
        singular and do no harm. Not differentiable.

    Source:
        Dowson and Landau (1982), J. Multivariate Anal. 12(3); Heusel et al. (2017),
        arXiv:1706.08500.

    Example:
        >>> a = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> round(float(frechet_distance(a, a + 3)), 6)
        18.0
    """
    real, fake = require_feature_sets("frechet_distance", real, fake, least=2)
    (mean, covariance), (other_mean, other) = _moments(real), _moments(fake)
    # tr (A^1/2 B A^1/2)^1/2 is the sum of the singular values of A^1/2 B^1/2, which needs no root
    # of a product that rounding makes indefinite.
    cross = torch.linalg.svdvals(spd_sqrt(covariance) @ spd_sqrt(other)).sum()
    apart = (mean - other_mean).square().sum()
    distance: Tensor = apart + covariance.trace() + other.trace() - 2 * cross
    return distance.clamp(min=0)


def kernel_distance(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    r"""Unbiased squared maximum mean discrepancy with the kernel ``(x . y / d + 1)^3``.

    In Inception features this is called KID; in others it must not be.

    Args:
        real: Features ``(n, d)`` with ``n >= 2``.
        fake: Features ``(m, d)`` with ``m >= 2``.

    Returns:
        A float64 scalar. Zero on average for two samples of one distribution, at any number of
        samples, so it may be negative; a set with itself always is, since it meets itself only in
        the mixed term.

    Raises:
        ShapeError: Not ``(n, d)``, sets of different width, or fewer than two samples.
        ConfigError: Not real floating-point.
        NonFiniteError: A feature is NaN or infinite.

    Note:
        Not differentiable.

    Source:
        Gretton et al. (2012), JMLR 13, equation 3; Binkowski et al. (2018), arXiv:1801.01401.
    """
    real, fake = require_feature_sets("kernel_distance", real, fake, least=2)
    within = _mean_within(real) + _mean_within(fake)
    return within - 2 * _kernel_sum(real, fake) / (len(real) * len(fake))


@dataclass(frozen=True)
class Fidelity:
    """One measure of two sets of images; it prints as ``NAME[features, n]`` with its floor.

    Attributes:
        name: ``"FD"``, ``"KD"``, ``"precision"``, ``"recall"``, ``"density"`` or ``"coverage"``.
        features: Name of the feature space.
        n: Samples in each set.
        value: Generated against real, mean over splits.
        spread: Standard deviation over splits.
        floor: Real against other real ones at the same ``n``: what a perfect generator gets.
        floor_spread: Its standard deviation over splits.
    """

    name: str
    features: str
    n: int
    value: float
    spread: float
    floor: float
    floor_spread: float

    @property
    def label(self) -> str:
        """``NAME[features, n]``."""
        return f"{self.name}[{self.features}, {self.n:,}]"

    def __str__(self) -> str:
        return (
            f"{self.label} = {self.value:.4g} +- {self.spread:.2g} "
            f"(real against real {self.floor:.4g} +- {self.floor_spread:.2g})"
        )


def fidelity(
    real: Float[Tensor, "n d"],
    fake: Float[Tensor, "m d"],
    *,
    features: str,
    seed: int,
    splits: int = 5,
) -> tuple[Fidelity, ...]:
    """Every measure of fidelity, each with its floor at the same number of samples.

    The real set is halved at random; one half is compared with as many generated samples and with
    the other half. So ``n`` is the smaller of half of the real and all of the generated samples.

    Args:
        real: Features ``(n, d)``, at least twice the samples that the measures need.
        fake: Features ``(m, d)``.
        features: Name of the feature space.
        seed: Of the splits.
        splits: How often, at least 2.

    Returns:
        FD, KD, precision and recall (3 neighbours), density and coverage (5).

    Raises:
        ShapeError: Not ``(n, d)``, sets of different width, or fewer than 6 samples in a half.
        ConfigError: Not real floating-point, or fewer than 2 splits.
        NonFiniteError: A feature is NaN or infinite.
    """
    require_count("fidelity", "splits", splits, at_least=2)
    real, fake = require_feature_sets("fidelity", real, fake, least=2)
    n = min(len(real) // 2, len(fake))
    if n < 6:
        raise ShapeError(
            f"fidelity needs at least 12 real samples and 6 generated ones, got {len(real)} and "
            f"{len(fake)}; one half of the real ones is compared with the other"
        )
    random = stream("fidelity", seed)
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in _MEASURES}
    for _ in range(splits):
        order = torch.randperm(len(real), generator=random)
        half, other = real[order[:n]], real[order[n : 2 * n]]
        drawn = fake[torch.randperm(len(fake), generator=random)[:n]]
        found, floor = _measures(half, drawn), _measures(half, other)
        for name, values in rows.items():
            values.append((found[name], floor[name]))
    return tuple(
        Fidelity(name, features, n, *_mean_and_spread([a for a, _ in values]),
                 *_mean_and_spread([b for _, b in values]))
        for name, values in rows.items()
    )  # fmt: skip


_MEASURES = ("FD", "KD", "precision", "recall", "density", "coverage")


def _measures(real: Tensor, fake: Tensor) -> dict[str, float]:
    manifold, covered = precision_recall(real, fake), density_coverage(real, fake)
    values = (
        float(frechet_distance(real, fake)),
        float(kernel_distance(real, fake)),
        manifold.precision,
        manifold.recall,
        covered.density,
        covered.coverage,
    )
    return dict(zip(_MEASURES, values, strict=True))


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values)


def _moments(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    mean = x.mean(dim=0)
    centred = x - mean
    return mean, centred.mT @ centred / (len(x) - 1)


def _mean_within(x: Tensor) -> Tensor:
    """Mean of the kernel over pairs of different samples."""
    diagonal = (x.square().sum(dim=1) / x.shape[1] + 1) ** 3
    return (_kernel_sum(x, x) - diagonal.sum()) / (len(x) * (len(x) - 1))


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    parts = [((rows @ b.mT / a.shape[1] + 1) ** 3).sum() for rows in torch.split(a, _ROWS)]
    return torch.stack(parts).sum()
