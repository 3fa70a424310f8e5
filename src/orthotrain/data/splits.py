"""What a recipe's data looks like, and the one rule that splits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64, Num
from torch import Tensor

from orthotrain.data.lazy import ImageArray
from orthotrain.errors import DataError, ShapeError

# Splits belong to the data set, not to a run: every seed of every variant sees the same ones.
SPLIT_SEED = 20240807
Part = Literal["train", "validation", "test"]
# Of what has no parts of its own: a tenth to validate, a tenth to test.
HELD_OUT = 0.1


@dataclass(frozen=True)
class Split:
    """Images ``(n, channels, height, width)``, uint8 or float32, with labels ``(n,)`` int64.

    Images that are too many for memory are decoded where a batch of them is indexed.
    """

    images: Num[Tensor, "n channels height width"] | ImageArray
    labels: Int64[Tensor, " n"]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ShapeError(
                f"Split: got images {tuple(self.images.shape)} and labels "
                f"{tuple(self.labels.shape)}, need (n, channels, height, width) and (n,)"
            )

    def __len__(self) -> int:
        """Number of images."""
        return self.labels.shape[0]

    def to(self, device: torch.device) -> Split:
        """The same images and labels on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """A data set with a validation part of its own.

    The test part stays behind a function: a run reads it once, after its last step, and
    nothing that chooses settings holds it by accident.
    """

    name: str
    train: Split
    validation: Split
    read_test: Callable[[], Split]
    classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def stratified_split(
    labels: Int64[Tensor, " n"], *, fractions: Sequence[float], generator: torch.Generator
) -> list[Int64[Tensor, " part"]]:
    """Indices of disjoint parts with the same class mix, the remainder first.

    Args:
        labels: ``(n,)`` class of each sample.
        fractions: Share of every class that goes to each further part; they sum to less than
            one. Counts are rounded per class.
        generator: CPU generator that decides who goes where; equal state, equal parts.

    Returns:
        ``1 + len(fractions)`` sorted index tensors that cover ``range(n)`` exactly once.

    Raises:
        DataError: A fraction is outside ``(0, 1)``, or some class is too small for a part.
    """
    if any(not 0 < fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise DataError(
            f"stratified_split: fractions {list(fractions)} must each lie in (0, 1) and sum to "
            "less than 1"
        )
    parts: list[list[Tensor]] = [[] for _ in range(1 + len(fractions))]
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        counts = [round(fraction * len(members)) for fraction in fractions]
        if min(counts) < 1 or sum(counts) >= len(members):
            raise DataError(
                f"stratified_split: class {label} has {len(members)} samples, too few for parts "
                f"of {list(fractions)} of them with at least one sample each; use larger "
                "fractions or more data"
            )
        sizes = [len(members) - sum(counts), *counts]
        for part, chosen in zip(parts, members.split(sizes), strict=True):
            part.append(chosen)
    return [torch.cat(part).sort().values for part in parts]


def limited(
    index: Int64[Tensor, " part"],
    *,
    labels: Int64[Tensor, " n"],
    limit: int | None,
    generator: torch.Generator,
) -> Int64[Tensor, " kept"]:
    """About ``limit`` entries of ``index``, stratified by label; all of them when None.

    Raises:
        DataError: ``limit`` leaves no sample of some class.
    """
    if limit is None or limit >= len(index):
        return index
    share, classes = limit / len(index), len(set(labels[index].tolist()))
    try:
        _, kept = stratified_split(labels[index], fractions=(share,), generator=generator)
    except DataError as error:
        raise DataError(
            f"train_limit={limit} leaves no sample of some of {classes} classes, of {len(index)} "
            "samples; raise it, or leave it out for all of them"
        ) from error
    return index[kept]


def random_parts(
    count: int, *, parts: Sequence[Part], title: str
) -> dict[Part, Int64[Tensor, " part"]]:
    """Indices of unlabelled images, always the same: a tenth for each part but the first.

    Args:
        count: Number of images.
        parts: Names of the parts; the first gets what is left.
        title: Names what is cut in the message.

    Raises:
        DataError: A tenth is no image.
    """
    if round(HELD_OUT * count) < 1:
        raise DataError(
            f"{title}: {count} images are too few to hold a tenth of them out; need at least 6"
        )
    indices = stratified_split(
        torch.zeros(count, dtype=torch.int64),
        fractions=[HELD_OUT] * (len(parts) - 1),
        generator=torch.Generator().manual_seed(SPLIT_SEED),
    )
    return dict(zip(parts, indices, strict=True))
