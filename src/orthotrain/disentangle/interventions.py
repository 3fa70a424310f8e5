"""What moving one latent coordinate does: activeness, traversals, and which factors change."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain._checks import require_count
from orthotrain._doors import checked
from orthotrain.disentangle.generators import Generate, Source, ValueRange, measuring
from orthotrain.disentangle.samples import concentration, stream
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError

#: Latents, and what a coordinate is set to: Wei et al. (2021).
SAMPLES, VALUES = 300, (-2.0, 0.0, 2.0)

Order = Literal["index", "activeness"]

_RESAMPLES = 50


@checked
def activeness(  # noqa: PLR0913 - the budget, by name
    generate: Generate,
    latent_dim: int,
    *,
    seed: int,
    samples: int = SAMPLES,
    values: Sequence[float] = VALUES,
    factors: int | None = None,
    batch_size: int = 64,
    value_range: ValueRange = "signed",
) -> Float[Tensor, " factors"]:
    """Mean variance of a pixel while one coordinate takes the values -2, 0 and 2.

    With ``G`` the generator and ``z`` from N(0, 1), coordinate ``i`` gets
    ``mean over z and pixels of var over v of G(z with z_i = v)``, with the unbiased variance. A
    coordinate that does not change the image gets 0.

    Args:
        generate: Latents ``(n, latent_dim)`` to images ``(n, c, h, w)``, grey or colour. The same
            latent must give the same image. A module, or its bound method, is put into evaluation
            mode for the call and back. It gets latents on the device and in the dtype of its
            weights. Any other callable gets float32 latents on the CPU, and sets the mode itself.
        latent_dim: Length of a latent.
        seed: Of the latents.
        samples: Latents for each coordinate.
        values: What the coordinate is set to; at least two.
        factors: Measure this many coordinates, from the first; None is all. The others are drawn
            from the prior, as a noise input of the generator would be.
        batch_size: Images per call.
        value_range: Of the images: ``"signed"`` [-1, 1], ``"unit"`` [0, 1], or ``"any"``. The
            first two are checked and measured alike, in [-1, 1]; the third is taken as it is.

    Returns:
        ``(factors,)`` float64 on the CPU.

    Raises:
        ConfigError: A setting out of its range, or images out of theirs.
        ShapeError: ``generate`` does not return ``(n, c, h, w)``.
        NonFiniteError: An image holds NaN or infinity.

    Note:
        Not differentiable.

    Source:
        Peebles et al. (2020), arXiv:2008.10599; latents and values as in the code of Wei et al.
        (2021), arXiv:2108.07668.

    Example:
        >>> def draw(z):  # two pixels: the first three times as strong as the second
        ...     return (z * torch.tensor([0.3, 0.1])).reshape(-1, 1, 1, 2)
        >>> [round(x, 4) for x in activeness(draw, 2, seed=0).tolist()]
        [0.18, 0.02]
    """
    source = Source.of("activeness", generate, latent_dim, factors, batch_size, value_range)
    return activeness_of_latents(source, seed=seed, samples=samples, values=values).mean(dim=0)


def activeness_of_latents(
    source: Source, *, seed: int, samples: int, values: Sequence[float]
) -> Float[Tensor, "samples factors"]:
    """Activeness at every latent by itself, whose mean and spread are reported."""
    require_count(source.function, "samples", samples, least=1)
    if len(values) < 2:
        raise ConfigError(
            f"{source.function} needs at least two values for a variance, got {list(values)}; "
            f"the published ones are -2, 0 and 2"
        )
    z = source.latents(samples, stream(source.function, seed))
    rows = torch.empty(samples, source.factors, dtype=torch.float64)
    with measuring(source.generate):
        for dim in range(source.factors):
            parts = []
            for images in source.batches(*(_moved(z, dim, value) for value in values)):
                variance = torch.stack([x.double() for x in images]).var(dim=0)
                parts.append(variance.mean(dim=(1, 2, 3)).cpu())
            rows[:, dim] = torch.cat(parts)
    return rows


@checked
def traversals(  # noqa: PLR0913 - what is drawn, by name
    generate: Generate,
    latent_dim: int,
    *,
    seed: int,
    samples: int = 1,
    values: Sequence[float] = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0),
    dims: Sequence[int] | None = None,
    order: Order = "index",
    factors: int | None = None,
    batch_size: int = 64,
    value_range: ValueRange = "signed",
) -> Float[Tensor, "samples rows values c h w"]:
    """Images along each latent coordinate, on fixed latents.

    The same seed gives the same latents to every generator, so figures can be compared. More
    samples add latents and leave the first as they are.

    Args:
        generate: Latents ``(n, latent_dim)`` to images, as for ``activeness``.
        latent_dim: Length of a latent.
        seed: Of the latents.
        samples: Latents, from N(0, 1).
        values: What the coordinate of a row is set to, from left to right.
        dims: One row for each of these coordinates; None is all that are factors.
        order: Of the rows: ``"index"`` is as ``dims`` has them, ``"activeness"`` puts the most
            active first, by ``activeness(generate, latent_dim, seed=seed)``.
        factors: How many coordinates, from the first, may be moved; None is all.
        batch_size: Images per call.
        value_range: Of the images, see ``activeness``.

    Returns:
        ``(samples, rows, values, c, h, w)`` on the CPU in the dtype of the images, in [-1, 1]
        unless ``value_range="any"``.

    Raises:
        ConfigError: A setting out of its range, or images out of theirs.
        ShapeError: ``generate`` does not return ``(n, c, h, w)``.
        NonFiniteError: An image holds NaN or infinity.

    Note:
        Not differentiable.

    Example:
        >>> rows = traversals(lambda z: z.reshape(-1, 1, 1, 2) / 4, 2, seed=0, values=[-2, 2])
        >>> rows.shape, rows[0, 0, :, 0, 0, 0].tolist()
        (torch.Size([1, 2, 2, 1, 1, 2]), [-0.5, 0.5])
    """
    source = Source.of("traversals", generate, latent_dim, factors, batch_size, value_range)
    require_count("traversals", "samples", samples, least=1)
    if len(values) == 0:
        raise ConfigError("traversals needs at least one value for a row, got none; try -3 to 3")
    rows = _rows(source, range(source.factors) if dims is None else dims, order, seed)
    z = source.latents(samples, stream("traversals", seed))
    grid = torch.stack(
        [torch.stack([_moved(z, dim, value) for value in values], dim=1) for dim in rows], dim=1
    )
    with measuring(generate):
        images = torch.cat([x.cpu() for (x,) in source.batches(grid.flatten(0, 2))])
    return images.reshape(*grid.shape[:3], *images.shape[1:])


def _rows(source: Source, dims: Sequence[int], order: Order, seed: int) -> list[int]:
    if not dims or any(isinstance(d, bool) or not 0 <= d < source.factors for d in dims):
        raise ConfigError(
            f"{source.function} needs dims between 0 and {source.factors - 1}, got {list(dims)}; "
            f"name at least one coordinate of the latent"
        )
    match order:
        case "index":
            return list(dims)
        case "activeness":
            active = activeness_of_latents(source, seed=seed, samples=SAMPLES, values=VALUES)
            found = active.mean(dim=0)[list(dims)].argsort(descending=True, stable=True)
            return [dims[i] for i in found.tolist()]
        case _:
            assert_never(order)


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
        spread: ``(f,)``: standard deviation of each factor in images of the prior. Read the scores
            beside the spread in real images: a generator of one image that moves by a pixel can
            score 1 in both.
    """

    sensitivity: Float[Tensor, "d f"]
    disentanglement: float
    completeness: float
    disentanglement_error: float
    completeness_error: float
    spread: Float[Tensor, " f"]


@checked
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
    """How far each factor of the generated images moves with each latent coordinate.

    With ``m`` the measure and ``z`` from N(0, 1), ``sensitivity_ij`` is the root mean square over
    ``z`` of the standard deviation over ``v`` of ``m_j(G(z with z_i = v))``, divided by the
    standard deviation of ``m_j(G(z))`` over ``z``. Disentanglement and completeness are those of
    DCI: ``1 - entropy`` of the rows and columns of the squared sensitivities, each weighted by
    its share. No encoder is needed.

    Args:
        generate: Latents ``(n, latent_dim)`` to images, as in ``activeness``.
        latent_dim: Length of a latent.
        measure: Images ``(n, c, h, w)``, in [-1, 1] unless ``value_range`` is ``"any"``, to
            ``(n, f)`` numbers, one per factor. Examples are the moments of a blob, or a network
            that was trained to read the factors of real images.
        seed: Of the latents.
        samples: Latents for each coordinate, at least two.
        values: What the coordinate is set to; at least two.
        factors: Move this many coordinates, from the first; None is all.
        batch_size: Images per call.
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
    source = Source.of("interventions", generate, latent_dim, factors, batch_size, value_range)
    require_count("interventions", "samples", samples, least=2)
    if len(values) < 2:
        raise ConfigError(
            f"interventions needs at least two values for a deviation, got {list(values)}; the "
            f"default is -2, -1, 0, 1, 2"
        )
    z = source.latents(samples, stream("interventions", seed))
    with measuring(generate, measure):
        prior = _measured(measure, source.batches(z))
        spread = prior[0].std(dim=0)
        variances = []
        for dim in range(source.factors):
            steps = torch.stack(
                _measured(measure, source.batches(*(_moved(z, dim, value) for value in values)))
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


def _measured(
    measure: Callable[[Tensor], Tensor], batches: Iterable[Sequence[Tensor]]
) -> list[Float[Tensor, "n f"]]:
    """Factors of several sets of images that come batch by batch, each set in one tensor."""
    columns = [[_checked(measure(x), len(x)) for x in images] for images in batches]
    return [torch.cat(parts) for parts in zip(*columns, strict=True)]


def _moved(z: Tensor, dim: int, value: float) -> Tensor:
    """A copy of the latents with one coordinate set."""
    z = z.clone()
    z[:, dim] = value
    return z


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
