"""The intervention route: one coordinate is moved, and what changes in the image is measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.disentangle._codes import require_count
from orthotrain.disentangle._generator import (
    Generate,
    Source,
    ValueRange,
    measuring,
    moved,
    stream,
)
from orthotrain.disentangle.dci import concentration
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError

_RESAMPLES = 50


@dataclass(frozen=True)
class Interventions:
    """What moving a coordinate does to the factors of the image.

    Attributes:
        sensitivity: ``(d, f)``: standard deviation of factor ``j`` while coordinate ``i`` moves,
            over that of the factor in images of the prior. 0 where it stays as it is.
        disentanglement: How far each coordinate changes one factor alone, in [0, 1].
        completeness: How far each factor is changed by one coordinate alone, in [0, 1].
        disentanglement_error: Its standard error over the latents, by resampling them with the
            deviations over the prior held as they are.
        completeness_error: The same of completeness.
        spread: ``(f,)``: standard deviation of each factor in images of the prior. The two scores
            do not ask how much there is to change: read them beside the spread in real images,
            since a generator of one image that moves by a pixel can have 1 in both.
    """

    sensitivity: Float[Tensor, "d f"]
    disentanglement: float
    completeness: float
    disentanglement_error: float
    completeness_error: float
    spread: Float[Tensor, " f"]


def interventions(  # noqa: PLR0913 - the budget, by name
    generate: Generate,
    latent_dim: int,
    *,
    measure: Callable[[Tensor], Tensor],
    seed: int,
    samples: int = 300,
    values: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    factors: int | None = None,
    batch_size: int = 64,
    value_range: ValueRange = "signed",
) -> Interventions:
    """Move one coordinate at a time and measure factors of the generated images.

    With ``m`` the measure and ``z`` from N(0, 1), ``sensitivity_ij`` is the root mean square over
    ``z`` of the standard deviation over ``v`` of ``m_j(G(z with z_i = v))``, divided by the
    standard deviation of ``m_j(G(z))`` over ``z``. Disentanglement and completeness are those of
    DCI, ``1 - entropy`` of the rows and columns of the squared sensitivities, each weighted by
    its share. No code has to be regressed, so nothing is lost to an encoder that fails.

    Args:
        generate: Latents ``(n, latent_dim)`` to images, as in ``activeness``.
        latent_dim: Length of a latent.
        measure: Images ``(n, c, h, w)``, in [-1, 1] unless ``value_range`` is ``"any"``, to
            ``(n, f)`` numbers, one a factor: such as the moments of a blob, or a network that was
            trained to tell the factors of real images.
        seed: Of the latents.
        samples: Latents for each coordinate, at least two.
        values: What the coordinate is set to; at least two.
        factors: Move this many coordinates, from the first; None is all.
        batch_size: Images a call.
        value_range: Of the generated images, see ``activeness``.

    Raises:
        ConfigError: A setting out of its range, or images out of theirs.
        ShapeError: ``generate`` gives no images, or ``measure`` no ``(n, f)``.
        NonFiniteError: An image or a measured factor holds NaN or infinity.

    Note:
        Not differentiable. A factor that is the same in all images of the prior has sensitivity 0.

    Source:
        The scores of Eastwood and Williams (2018), on a matrix of our own.
    """
    source = Source.of(
        "interventions", generate, latent_dim,
        factors=factors, batch_size=batch_size, value_range=value_range,
    )  # fmt: skip
    require_count("interventions", "samples", samples, at_least=2)
    if len(values) < 2:
        raise ConfigError(
            f"interventions needs at least two values for a deviation, got {list(values)}"
        )
    z = source.latents(samples, stream("interventions", seed))
    with measuring(generate, measure):
        prior = _measured(measure, source.batches(z))
        spread = prior[0].std(dim=0)
        variances = []
        for dim in range(source.factors):
            steps = torch.stack(
                _measured(measure, source.batches(*(moved(z, dim, value) for value in values)))
            )
            variances.append(steps.var(dim=0))
    # What rounding leaves of a constant is no factor of the image.
    moving = spread > 1e-9 * prior[0].abs().amax(dim=0).clamp(min=1e-300)
    unit = torch.where(moving, spread, math.inf).square()
    power = torch.stack(variances) / unit  # (d, n, f)
    random = stream("interventions", seed)
    again = [
        _scores(power[:, torch.randint(samples, (samples,), generator=random)])
        for _ in range(_RESAMPLES)
    ]
    errors = [statistics.stdev(values) for values in zip(*again, strict=True)]
    disentanglement, completeness = _scores(power)
    return Interventions(
        power.mean(dim=1).sqrt(), disentanglement, completeness, errors[0], errors[1], spread
    )


def _scores(power: Float[Tensor, "d n f"]) -> tuple[float, float]:
    """Disentanglement and completeness of squared sensitivities, one for each latent."""
    mean = power.mean(dim=1)
    return concentration(mean), concentration(mean.T)


def _measured(measure: Callable[[Tensor], Tensor], batches: object) -> list[Float[Tensor, "n f"]]:
    """Factors of several sets of images that come batch by batch, each set in one tensor."""
    columns: list[list[Tensor]] = []
    for images in batches:  # type: ignore[attr-defined]
        found = [_checked(measure(x), len(x)) for x in images]
        columns.append(found)
    return [torch.cat(parts) for parts in zip(*columns, strict=True)]


def _checked(factors: object, n: int) -> Tensor:
    if not isinstance(factors, Tensor) or factors.ndim != 2 or len(factors) != n:
        got = tuple(factors.shape) if isinstance(factors, Tensor) else type(factors).__name__
        raise ShapeError(
            f"interventions needs measure to return (n, f) with n = {n}, got {got}; give each "
            "image one row of numbers"
        )
    if not factors.isfinite().all():
        raise NonFiniteError(
            "interventions: measure returned NaN or infinity; give images without a blob a number"
        )
    return factors.detach().double().cpu()
