"""Real images as the measures of fidelity take them: by index, in [-1, 1], a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from orthotrain.disentangle._generator import ValueRange
from orthotrain.disentangle.features import signed_images
from orthotrain.errors import ConfigError, ShapeError


@runtime_checkable
class Reference(Protocol):
    """Real images: a tensor ``(n, c, h, w)``, or anything that is indexed like one.

    An index tensor ``(k,)`` gives images ``(k, c, h, w)``, uint8 or floating-point, alone or as
    the first of a tuple.
    """

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: Any, /) -> Any:
        """Images at an index tensor."""


def image_batches(
    reference: Reference,
    index: Int64[Tensor, " k"],
    *,
    value_range: ValueRange,
    batch_size: int,
) -> Iterator[Float[Tensor, "n c h w"]]:
    """The images at ``index`` in [-1, 1]; raises unless each batch holds as many as asked for."""
    for part in torch.split(index, batch_size):
        found = reference[part]
        images = found[0] if isinstance(found, tuple | list) else found
        if not isinstance(images, Tensor):
            raise ConfigError(
                f"evaluate needs reference[indices] to be a tensor of images, got "
                f"{type(images).__name__}; pass a tensor, or an object that stacks its images"
            )
        if images.ndim != 4 or len(images) != len(part):
            raise ShapeError(
                f"evaluate needs reference[indices] of shape (k, c, h, w) for k = {len(part)} "
                f"indices, got {tuple(images.shape)}; index it with a tensor to see"
            )
        yield signed_images(images, value_range=value_range)


def drawn(reference: Reference, random: torch.Generator) -> Int64[Tensor, " n"]:
    """All indices of the reference in random order."""
    try:
        count = len(reference)
    except TypeError as error:
        raise ConfigError(
            f"evaluate needs a reference with a length, got {type(reference).__name__}; pass a "
            f"tensor of images, or an object with len and [indices]"
        ) from error
    return torch.randperm(count, generator=random)
