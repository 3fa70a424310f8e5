"""Generated images compared with real ones, as two sets of feature vectors.

Frechet and kernel distance, precision and recall, density and coverage; ``fidelity`` gives all of
them, each beside real against real. None is differentiable.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orthotrain._checks import require_count, require_finite
from orthotrain._doors import checked
from orthotrain.disentangle.samples import stream
from orthotrain.errors import ShapeError
from orthotrain.linalg import spd_sqrt

# Rows of a kernel matrix at a time, 8 MB for 1,000 columns in float64; and pairs of points.
_ROWS, _PAIRS = 1024, 4096
_EPS = torch.finfo(torch.float64).eps

_MEASURES = ("FD", "KD", "precision", "recall", "density", "coverage")


@checked
def frechet_distance(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    r"""Squared Frechet distance of two Gaussians with the means and covariances of the sets.

    ``|mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)``. Only in Inception features
    may this be called FID.

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
        Biased upwards, more so with fewer samples. Compare at one ``n`` only, beside the distance
        of real images to other real ones. Covariances of fewer samples than features are
        singular and do no harm.

    Source:
        Dowson and Landau (1982), J. Multivariate Anal. 12(3); Heusel et al. (2017),
        arXiv:1706.08500.

    Example:
        >>> a = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> round(float(frechet_distance(a, a + 3)), 6)
        18.0
    """
    real, fake = _feature_sets("frechet_distance", real, fake, least=2)
    (mean, covariance), (other_mean, other) = _moments(real), _moments(fake)
    # tr (A^1/2 B A^1/2)^1/2 is the sum of the singular values of A^1/2 B^1/2, which needs no root
    # of a product that rounding makes indefinite.
    cross = torch.linalg.svdvals(spd_sqrt(covariance) @ spd_sqrt(other)).sum()
    apart = (mean - other_mean).square().sum()
    distance: Tensor = apart + covariance.trace() + other.trace() - 2 * cross
    return distance.clamp(min=0)


@checked
def kernel_distance(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    r"""Unbiased squared maximum mean discrepancy with the kernel ``(x . y / d + 1)^3``.

    Only in Inception features may this be called KID.

    Args:
        real: Features ``(n, d)`` with ``n >= 2``.
        fake: Features ``(m, d)`` with ``m >= 2``.

    Returns:
        A float64 scalar. Zero on average for two samples of one distribution, at any number of
        samples, so it may be negative. For a set with itself it always is.

    Raises:
        ShapeError, ConfigError, NonFiniteError: As ``frechet_distance``.

    Source:
        Gretton et al. (2012), JMLR 13, equation 3; Binkowski et al. (2018), arXiv:1801.01401.
    """
    real, fake = _feature_sets("kernel_distance", real, fake, least=2)
    within = _mean_within(real) + _mean_within(fake)
    return within - 2 * _kernel_sum(real, fake) / (len(real) * len(fake))


@dataclass(frozen=True)
class PrecisionRecall:
    """Both in [0, 1]; one for a set against itself.

    Attributes:
        precision: Share of the generated samples that lie where real ones do.
        recall: Share of the real samples that lie where generated ones do.
    """

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Both one for a set against itself; the mean density of equal distributions is one.

    Attributes:
        density: How many real neighbourhoods hold a generated sample, over ``k``; may pass one.
        coverage: Share of the real neighbourhoods that hold any generated sample, in [0, 1].
    """

    density: float
    coverage: float


@checked
def precision_recall(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """Share of each set inside the other's manifold of k-nearest-neighbour balls.

    A point is inside where its distance to some point of the set is at most that point's distance
    to its own k-th neighbour.

    Args:
        real: Features ``(n, d)`` with ``n > k``.
        fake: Features ``(m, d)`` with ``m > k``.
        k: Neighbours, 3 as published.

    Returns:
        ``.precision`` and ``.recall``. Both depend on the size of the sets and on the feature
        space: read them beside real against real.

    Raises:
        ShapeError, ConfigError, NonFiniteError: As ``frechet_distance``; also no more than ``k``
            samples, or ``k`` below 1.

    Source:
        Kynkaanniemi et al. (2019), arXiv:1904.06991, equation 1.
    """
    require_count("precision_recall", "k", k, least=1)
    real, fake = _feature_sets("precision_recall", real, fake, least=k + 1)
    return _manifold(_Distances(real, fake), _Distances(real, real), _Distances(fake, fake), k)


@checked
def density_coverage(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 5
) -> DensityCoverage:
    """How often, and how widely, generated samples fall into neighbourhoods of real ones.

    Only real samples have neighbourhoods, so an outlier among the generated ones does no harm. A
    sample lies in a neighbourhood where its distance is less than the radius.

    Args:
        real: Features ``(n, d)`` with ``n > k``.
        fake: Features ``(m, d)`` with ``m > k``.
        k: Neighbours, 5 as published.

    Returns:
        ``.density`` and ``.coverage``. Of two samples of one distribution the mean density is one
        and the mean coverage ``1 - prod over j of (n - j) / (n + m - j)``, ``j`` from 1 to ``k``.

    Raises:
        ShapeError, ConfigError, NonFiniteError: As ``frechet_distance``; also no more than ``k``
            samples, or ``k`` below 1.

    Note:
        Points that are there more than ``k`` times have a radius of zero, and
        nothing falls into it.

    Source:
        Naeem et al. (2020), arXiv:2002.09797.
    """
    require_count("density_coverage", "k", k, least=1)
    real, fake = _feature_sets("density_coverage", real, fake, least=k + 1)
    return _neighbourhoods(_Distances(real, fake), _Distances(real, real), k)


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


@checked
def fidelity(
    real: Float[Tensor, "n d"],
    fake: Float[Tensor, "m d"],
    *,
    features: str,
    seed: int,
    splits: int = 5,
) -> tuple[Fidelity, ...]:
    """Every measure of fidelity, each with its floor at the same number of samples.

    The real set is halved at random. One half is compared with as many generated samples, and with
    the other half. ``n`` is the smaller of half of the real and all of the generated samples.

    Args:
        real: Features ``(n, d)``, at least twice the samples that the measures need.
        fake: Features ``(m, d)``.
        features: Name of the feature space.
        seed: Of the splits.
        splits: How often, at least 2.

    Returns:
        FD, KD, precision and recall (3 neighbours), density and coverage (5).

    Raises:
        ShapeError, ConfigError, NonFiniteError: As ``frechet_distance``; also fewer than 6 samples
            in a half, or fewer than 2 splits.
    """
    require_count("fidelity", "splits", splits, least=2)
    real, fake = _feature_sets("fidelity", real, fake, least=2)
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
        among = _Distances(half, half)
        found, floor = _measures(half, drawn, among), _measures(half, other, among)
        for name, values in rows.items():
            values.append((found[name], floor[name]))
    return tuple(
        Fidelity(name, features, n, *_mean_and_spread([a for a, _ in values]),
                 *_mean_and_spread([b for _, b in values]))
        for name, values in rows.items()
    )  # fmt: skip


def _feature_sets(
    function: str, real: Tensor, fake: Tensor, *, least: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """The two sets in float64; raises unless each is a finite ``(n, d)`` with enough rows."""
    for name, x in (("real", real), ("fake", fake)):
        if x.ndim != 2 or x.shape[1] == 0:
            raise ShapeError(
                f"{function} needs features {name} of shape (n, d), got {tuple(x.shape)}; embed "
                f"the images in a feature space first"
            )
        if len(x) < least:
            raise ShapeError(
                f"{function} needs at least {least} samples in each set, got {len(x)} in {name} "
                f"of shape {tuple(x.shape)}; draw more"
            )
        require_finite(function, name, x)
    if real.shape[1] != fake.shape[1]:
        raise ShapeError(
            f"{function} needs both sets in one feature space, got {real.shape[1]} and "
            f"{fake.shape[1]} features; embed them by the same function"
        )
    return real.detach().double(), fake.detach().to(real.device).double()


class _Distances:
    """Euclidean distances of two sets, compared as if each were taken entry by entry.

    One product gives their squares up to rounding. Where that could decide, a pair is measured
    again entry by entry, so equal pairs have equal distances, and a pair of equal points has 0.
    """

    def __init__(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> None:
        self._a, self._b = a, b
        centre = b.mean(dim=0)
        x, y = a - centre, b - centre
        lengths = x.square().sum(dim=1, keepdim=True) + y.square().sum(dim=1)
        self._squares = torch.addmm(lengths, x, y.mT, alpha=-2)
        # Sums of d products, each rounded once, twice over for safety.
        self._slack = lengths.mul_(4 * (a.shape[1] + 4) * _EPS)

    def within(self, radii: Tensor, *, of_rows: bool, strictly: bool) -> Bool[Tensor, "n m"]:
        """Which pairs are no further apart than the radius of the row, or of the column."""
        radii = radii.unsqueeze(1) if of_rows else radii.unsqueeze(0)
        over = self._squares - radii.square()
        inside = over < 0
        unsure = over.abs() <= self._slack + 4 * _EPS * radii.square()
        rows, columns = unsure.nonzero(as_tuple=True)
        exact, radius = self._exact(rows, columns), radii.expand_as(over)[rows, columns]
        inside[rows, columns] = exact < radius if strictly else exact <= radius
        return inside

    def nearest(self, k: int) -> Float[Tensor, " n"]:
        """Distance of every row to its ``k``-th nearest column."""
        # topk takes a sixth of the time of kthvalue for the few nearest.
        bound = (self._squares + self._slack).topk(k, dim=1, largest=False).values[:, -1:]
        rows, columns = (self._squares - self._slack <= bound).nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(self._a))
        candidates = self._a.new_full((len(self._a), int(counts.max())), torch.inf)
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        candidates[rows, place] = self._exact(rows, columns)
        return candidates.kthvalue(k, dim=1).values

    def _exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        parts = zip(torch.split(rows, _PAIRS), torch.split(columns, _PAIRS), strict=True)
        return torch.cat([(self._a[i] - self._b[j]).norm(dim=1) for i, j in parts])


def _manifold(
    apart: _Distances, among_real: _Distances, among_fake: _Distances, k: int
) -> PrecisionRecall:
    # The nearest of all to a point is the point itself.
    in_real = apart.within(among_real.nearest(k + 1), of_rows=True, strictly=False).any(dim=0)
    in_fake = apart.within(among_fake.nearest(k + 1), of_rows=False, strictly=False).any(dim=1)
    return PrecisionRecall(
        precision=float(in_real.double().mean()), recall=float(in_fake.double().mean())
    )


def _neighbourhoods(apart: _Distances, among_real: _Distances, k: int) -> DensityCoverage:
    inside = apart.within(among_real.nearest(k + 1), of_rows=True, strictly=True)
    return DensityCoverage(
        density=float(inside.double().sum(dim=0).mean()) / k,
        coverage=float(inside.any(dim=1).double().mean()),
    )


def _measures(real: Tensor, fake: Tensor, among_real: _Distances) -> dict[str, float]:
    apart = _Distances(real, fake)
    manifold = _manifold(apart, among_real, _Distances(fake, fake), k=3)
    covered = _neighbourhoods(apart, among_real, k=5)
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
