"""The rows of an evaluation that compare generated images with real ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from orthotrain.disentangle._codes import require_count
from orthotrain.disentangle._generator import (
    Source,
    ValueRange,
    measuring,
    require_range,
    stream,
)
from orthotrain.disentangle._reference import Reference, drawn, image_batches
from orthotrain.disentangle.budget import Budget
from orthotrain.disentangle.evaluation import Score
from orthotrain.disentangle.features import FeatureSpace, pixel_pca, random_features
from orthotrain.disentangle.fidelity import fidelity
from orthotrain.errors import ShapeError

#: Seeds of the random spaces. One network may see or miss a fault by luck; report all three.
RANDOM_SPACES = (0, 1, 2)

_PCA_COMPONENTS = 64
# A fifth is set apart for the PCA, and six are the fewest that have five neighbours.
_FEWEST = 15


def fidelity_rows(  # noqa: PLR0913 - what is compared, by name
    source: Source,
    reference: Reference,
    *,
    reference_range: ValueRange,
    spaces: Sequence[FeatureSpace],
    image_shape: tuple[int, ...],
    seed: int,
    budget: Budget,
) -> list[Score]:
    """Every measure in three random spaces, pixel PCA and the given ones, with its floor."""
    require_range("evaluate", reference_range)
    for name in ("images", "pca_images"):
        require_count("evaluate", name, getattr(budget, name), at_least=2)
    random = stream("evaluate", seed)
    order = drawn(reference, random)
    if len(order) < _FEWEST:
        raise ShapeError(
            f"evaluate needs at least {_FEWEST} real images, got {len(order)}; distances of so few "
            f"say nothing, give thousands"
        )

    def real(index: Int64[Tensor, " k"]) -> Iterator[Tensor]:
        for images in image_batches(
            reference, index, value_range=reference_range, batch_size=source.batch_size
        ):
            _require_like(images, image_shape)
            yield images

    fitted = max(2, min(budget.pca_images, len(order) // 5))
    scored = order[fitted : fitted + 2 * budget.images]
    fit = torch.cat(list(real(order[:fitted])))
    components = min(_PCA_COMPONENTS, len(fit) - 1, fit[0].numel())
    every = [
        *(random_features(seed=number) for number in RANDOM_SPACES),
        pixel_pca(fit, components=components),
        *spaces,
    ]
    z = source.latents(min(budget.images, len(scored) // 2), random)
    with measuring(source.generate):
        generated = embedded(every, (images for (images,) in source.batches(z)))
    rows = []
    for space, a, b in zip(every, embedded(every, real(scored)), generated, strict=True):
        for found in fidelity(a, b, features=space.name, seed=seed, splits=budget.splits):
            better = "lower" if found.name in ("FD", "KD") else "higher"
            note = f"{better}; spread over {budget.splits} splits"
            rows.append(Score(found.label, found.value, found.spread, floor=found.floor, note=note))
    return rows


def embedded(
    spaces: Sequence[FeatureSpace], batches: Iterable[Tensor]
) -> list[Float[Tensor, "n d"]]:
    """Features of all images in each space, on the CPU; every batch is made once."""
    parts: list[list[Tensor]] = [[] for _ in spaces]
    for images in batches:
        for space, part in zip(spaces, parts, strict=True):
            part.append(space(images).cpu())
    return [torch.cat(part) for part in parts]


def _require_like(images: Tensor, image_shape: tuple[int, ...]) -> None:
    if tuple(images.shape[1:]) != image_shape:
        raise ShapeError(
            f"evaluate needs real images of the shape {image_shape} of generated ones, got "
            f"{tuple(images.shape[1:])}; crop and resize them as in training"
        )
