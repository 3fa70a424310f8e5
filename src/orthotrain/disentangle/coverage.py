"""Precision and recall, density and coverage: do the samples look right, and are all there?"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from orthotrain.disentangle._codes import require_count
from orthotrain.disentangle._feature_sets import distances, neighbour_radii, require_feature_sets


@dataclass(frozen=True)
class PrecisionRecall:
    """Both in [0, 1]; one for a set against itself.

    Attributes:
        precision: Part of the generated samples that lie where real ones do.
        recall: Part of the real samples that lie where generated ones do.
    """

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Both one for a set against itself; the mean density of equal distributions is one.

    Attributes:
        density: How many real neighbourhoods hold a generated sample, over ``k``; may pass one.
        coverage: Part of the real neighbourhoods that hold any generated sample, in [0, 1].
    """

    density: float
    coverage: float


def precision_recall(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """Parts of each set inside the other's manifold of k-nearest-neighbour balls.

    A point is inside where its distance to some point of the set is at most that point's distance
    to its own k-th neighbour.

    Args:
        real: Features ``(n, d)`` with ``n > k``.
        fake: Features ``(m, d)`` with ``m > k``.
        k: Neighbours, 3 as published.

    Returns:
        ``.precision`` and ``.recall``. Sets of different size or in another feature space give
        other numbers; look at real against real beside them.

    Raises:
        ShapeError: Not ``(n, d)``, sets of different width, or no more than ``k`` samples.
        ConfigError: Not real floating-point, or ``k`` below 1.
        NonFiniteError: A feature is NaN or infinite.

    Note:
        Not differentiable.

    Source:
        Kynkaanniemi et al. (2019), arXiv:1904.06991, equation 1.
    """
    require_count("precision_recall", "k", k, at_least=1)
    real, fake = require_feature_sets("precision_recall", real, fake, least=k + 1)
    apart = distances(real, fake)
    in_real = (apart <= neighbour_radii(real, k).unsqueeze(1)).any(dim=0)
    in_fake = (apart <= neighbour_radii(fake, k)).any(dim=1)
    return PrecisionRecall(
        precision=float(in_real.double().mean()), recall=float(in_fake.double().mean())
    )


def density_coverage(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 5
) -> DensityCoverage:
    """How often, and how widely, generated samples fall into neighbourhoods of real ones.

    Only real samples have neighbourhoods, so an outlier among the generated ones does no harm.
    A sample is in one where its distance is less than the radius.

    Args:
        real: Features ``(n, d)`` with ``n > k``.
        fake: Features ``(m, d)`` with ``m > k``.
        k: Neighbours, 5 as published.

    Returns:
        ``.density`` and ``.coverage``. Of two samples of one distribution the mean density is one
        and the mean coverage ``1 - prod over j of (n - j) / (n + m - j)``, ``j`` from 1 to ``k``.

    Raises:
        ShapeError: Not ``(n, d)``, sets of different width, or no more than ``k`` samples.
        ConfigError: Not real floating-point, or ``k`` below 1.
        NonFiniteError: A feature is NaN or infinite.

    Note:
        Not differentiable. Points that are there more than ``k`` times have a radius of zero, and
        nothing falls into it.

    Source:
        Naeem et al. (2020), arXiv:2002.09797.
    """
    require_count("density_coverage", "k", k, at_least=1)
    real, fake = require_feature_sets("density_coverage", real, fake, least=k + 1)
    inside = distances(real, fake) < neighbour_radii(real, k).unsqueeze(1)
    return DensityCoverage(
        density=float(inside.double().sum(dim=0).mean()) / k,
        coverage=float(inside.any(dim=1).double().mean()),
    )
