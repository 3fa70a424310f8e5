"""Perceptual path length (PPL): how fast images change along a path between latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain._checks import known, require_count, require_share, require_values
from orthotrain._doors import checked
from orthotrain.disentangle.features import FeatureSpace
from orthotrain.disentangle.generators import Generate, Source, ValueRange, measuring
from orthotrain.disentangle.samples import stream
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg._inputs import power_of_two_scale

# Halves of a sum of unit vectors below this many eps are rounding.
_OPPOSITE = 8


@dataclass(frozen=True)
class PathLength:
    """Mean squared speed in a feature space; it prints as ``PPL[features, n]``.

    Attributes:
        mean: Over the paths.
        spread: Standard error of the mean.
        features: Name of the feature space.
        samples: Paths.
    """

    mean: float
    spread: float
    features: str
    samples: int

    @property
    def label(self) -> str:
        """``PPL[features, n]``."""
        return f"PPL[{self.features}, {self.samples:,}]"

    def __str__(self) -> str:
        return f"{self.label} = {self.mean:.4g} +- {self.spread:.2g}"


@checked
def path_length(  # noqa: PLR0913 - the settings of a metric, by name
    generate: Generate,
    latent_dim: int,
    *,
    seed: int,
    space: FeatureSpace,
    samples: int = 2000,
    step: float = 1e-4,
    batch_size: int = 64,
    value_range: ValueRange = "signed",
) -> PathLength:
    r"""Mean of ``|f(G(s(t + step))) - f(G(s(t)))|^2 / step^2`` over paths between latents.

    Ends are from the prior N(0, 1), ``t`` is even in [0, 1), and ``s`` is ``slerp``: it keeps the
    radius that normal latents have, where the published code walks on the unit sphere, on which
    the generator was never trained.

    Args:
        generate: Latents ``(n, latent_dim)`` to images, as for ``activeness``.
        latent_dim: Length of a latent, at least 2.
        seed: Of the ends and of ``t``.
        space: In which features are compared; its name is part of the result. Numbers of two
            spaces cannot be compared.
        samples: Paths, at least 2.
        step: Of the path's parameter, as published.
        batch_size: Images per call.
        value_range: Of the images, see ``activeness``.

    Returns:
        ``.mean`` and ``.spread``. No outliers are cut away, unlike the published number, which
        leaves out a hundredth at each end.

    Raises:
        ConfigError: A setting out of its range, or images out of theirs.
        ShapeError: ``generate`` does not return ``(n, c, h, w)``, or features are not a row each.
        NonFiniteError: An image or a feature holds NaN or infinity.

    Note:
        Rounding of float32 images adds about ``(6e-8 / step)^2`` per pixel, 4e-7 at the default; a
        generator in float64 is measured in float64. Not differentiable.

    Source:
        Karras, Laine and Aila (2019), arXiv:1812.04948, section 4.1.
    """
    source = Source.of("path_length", generate, latent_dim, None, batch_size, value_range)
    require_count("path_length", "samples", samples, least=2)
    if latent_dim < 2:
        raise ConfigError(
            f"path_length needs latent_dim of at least 2 for paths on a sphere, got {latent_dim}; "
            f"look at a traversal instead"
        )
    require_share("path_length", "step", step)
    random = stream("path_length", seed)
    ends = [source.latents(samples, random) for _ in range(2)]
    least = torch.finfo(ends[0].dtype).eps
    if step < least:
        raise ConfigError(
            f"path_length needs a step of at least {least:.2g} for latents of {ends[0].dtype}, got "
            f"{step}: a smaller one is lost when latents are rounded; 1e-4 is the published"
        )
    ends = [end.double() for end in ends]
    t = torch.rand(samples, generator=random, dtype=torch.float64)
    path = [slerp(ends[0], ends[1], t + shift) for shift in (0.0, step)]
    speeds = []
    with measuring(generate):
        for here, ahead in source.batches(*path):
            moved = (space(ahead) - space(here)) / step
            speeds.append(moved.square().sum(dim=1).cpu())
    speed = torch.cat(speeds)
    return PathLength(
        mean=float(speed.mean()),
        spread=float(speed.std()) / math.sqrt(samples),
        features=space.name,
        samples=samples,
    )


@checked
def slerp(
    a: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch d"], t: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch d"]:
    """Point on the great circle from ``a`` to ``b``, its radius between theirs.

    Directions turn at an even pace and the radius goes evenly from ``|a|`` to ``|b|``, so the ends
    are exactly the ends and a path between normal latents stays where normal latents are.

    Args:
        a: ``(*batch, d)``, not zero.
        b: ``(*batch, d)``, not zero.
        t: ``(*batch,)``, 0 at ``a`` and 1 at ``b``.

    Returns:
        ``(*batch, d)``. Between parallel vectors the straight line.

    Raises:
        ConfigError: A vector is zero, or two are opposite, between which the great circle is not
            unique. Under ``torch.vmap`` nobody can know, and the result is not finite there.
        ShapeError: ``a`` and ``b`` differ in shape, or ``t`` is not one number per vector.

    Note:
        Differentiable where the directions differ and are not opposite.

    Example:
        >>> slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), torch.tensor(1.0)).tolist()
        [0.0, 4.0]
    """
    if a.shape != b.shape or a.ndim < 1 or t.shape != a.shape[:-1]:
        raise ShapeError(
            f"slerp needs a and b of one shape (*batch, d) and t of shape (*batch), got "
            f"{tuple(a.shape)}, {tuple(b.shape)} and {tuple(t.shape)}; give t for each pair"
        )
    for name, x in (("a", a), ("b", b), ("t", t)):
        require_values("slerp", name, x)
    (p, from_radius), (q, to_radius) = _polar(a), _polar(b)
    t = t.unsqueeze(-1)
    # Half the chord and half its complement: exact where the arc cosine loses half the digits.
    chord, complement = (x.norm(dim=-1, keepdim=True) for x in (p - q, p + q))
    if known((from_radius == 0).any() | (to_radius == 0).any()):
        raise ConfigError(
            f"slerp needs vectors that are not zero, got one in a or b of shape {tuple(a.shape)}; "
            f"a zero vector has no direction to turn from or to"
        )
    if known((complement < _OPPOSITE * torch.finfo(a.dtype).eps).any()):
        raise ConfigError(
            f"slerp needs vectors that are not opposite, got such a pair in a and b of shape "
            f"{tuple(a.shape)}; half-circles between them are many: turn one of them a little"
        )
    angle = 2 * torch.atan2(chord, complement)
    sine = torch.sin(angle)
    parallel = angle < torch.finfo(a.dtype).eps
    safe = torch.where(parallel, 1.0, sine)
    turned = (torch.sin((1 - t) * angle) * p + torch.sin(t * angle) * q) / safe
    direction = torch.where(parallel, p, turned)
    point: Tensor = ((1 - t) * from_radius + t * to_radius) * direction
    return point


def _polar(x: Float[Tensor, "*batch d"]) -> tuple[Tensor, Tensor]:
    """Direction and radius, also of a vector whose squares leave the dtype; zero has none."""
    scale = power_of_two_scale(x.unsqueeze(-2)).squeeze(-2)
    unit = x / scale
    length = unit.norm(dim=-1, keepdim=True)
    return unit / length, length * scale
