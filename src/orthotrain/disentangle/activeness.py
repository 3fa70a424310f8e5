"""Activeness: how much of the image each latent coordinate moves."""

from __future__ import annotations

from collections.abc import Sequence

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
from orthotrain.errors import ConfigError

#: Latents, and what a coordinate is set to: Wei et al. (2021).
SAMPLES, VALUES = 300, (-2.0, 0.0, 2.0)


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
    ``mean over z and pixels of var over v of G(z with z_i = v)``, the variance unbiased. A
    coordinate that changes nothing gets 0.

    Args:
        generate: Latents ``(n, latent_dim)`` to images ``(n, c, h, w)``, grey or colour, the same
            image for the same latent. A module, or its bound method, is put into evaluation mode
            for the call and back, and gets latents on the device and in the dtype of its weights.
            Another callable gets float32 latents on the CPU and sees to the mode of its modules.
        latent_dim: Length of a latent.
        seed: Of the latents.
        samples: Latents for each coordinate.
        values: What the coordinate is set to; at least two.
        factors: Measure this many coordinates, from the first; None is all. The others are drawn
            from the prior, as a noise input of the generator would be.
        batch_size: Images a call.
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
    source = Source.of(
        "activeness", generate, latent_dim,
        factors=factors, batch_size=batch_size, value_range=value_range,
    )  # fmt: skip
    return activeness_of_latents(source, seed=seed, samples=samples, values=values).mean(dim=0)


def activeness_of_latents(
    source: Source, *, seed: int, samples: int, values: Sequence[float]
) -> Float[Tensor, "samples factors"]:
    """Activeness at every latent by itself, whose mean and spread are reported."""
    require_count(source.function, "samples", samples, at_least=1)
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
            for images in source.batches(*(moved(z, dim, value) for value in values)):
                variance = torch.stack([x.double() for x in images]).var(dim=0)
                parts.append(variance.mean(dim=(1, 2, 3)).cpu())
            rows[:, dim] = torch.cat(parts)
    return rows
