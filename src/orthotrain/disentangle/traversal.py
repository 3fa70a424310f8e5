"""Traversals: one latent coordinate moved, all others kept, as rows of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never, get_args

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
    require_choice,
    require_dims,
    stream,
)
from orthotrain.disentangle.activeness import SAMPLES, VALUES, activeness_of_latents
from orthotrain.errors import ConfigError

Order = Literal["index", "activeness"]


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

    The same seed gives the same latents to every generator, so that figures can be compared; more
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
        batch_size: Images a call.
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
    source = Source.of(
        "traversals", generate, latent_dim,
        factors=factors, batch_size=batch_size, value_range=value_range,
    )  # fmt: skip
    require_count("traversals", "samples", samples, at_least=1)
    if len(values) == 0:
        raise ConfigError("traversals needs at least one value for a row, got none; -3 to 3 shows")
    rows = _rows(source, range(source.factors) if dims is None else dims, order, seed)
    z = source.latents(samples, stream("traversals", seed))
    grid = torch.stack(
        [torch.stack([moved(z, dim, value) for value in values], dim=1) for dim in rows], dim=1
    )
    with measuring(generate):
        images = torch.cat([x.cpu() for (x,) in source.batches(grid.flatten(0, 2))])
    return images.reshape(*grid.shape[:3], *images.shape[1:])


def _rows(source: Source, dims: Sequence[int], order: Order, seed: int) -> list[int]:
    require_dims(source.function, dims, source.factors)
    require_choice(source.function, "order", order, get_args(Order))
    match order:
        case "index":
            return list(dims)
        case "activeness":
            active = activeness_of_latents(source, seed=seed, samples=SAMPLES, values=VALUES)
            found = active.mean(dim=0)[list(dims)].argsort(descending=True, stable=True)
            return [dims[i] for i in found.tolist()]
        case _:
            assert_never(order)
