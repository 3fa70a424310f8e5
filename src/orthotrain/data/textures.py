"""Ten classes of the Describable Textures Dataset from one packed local file."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from orthotrain.data.packed import PackedSource, load_packed
from orthotrain.data.splits import ImageData

# Every third image of a class, beginning with its first, is a test image.
TEST_EVERY = 3
# Of the other two thirds, stratified: 16 of 80 images per class.
VALIDATION_FRACTION = 0.2


def every_third(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Split mark ``(n,)`` of each image: 1 (test) for every third within its class, else 0."""
    marks = np.zeros_like(label)
    for value in np.unique(label):
        marks[np.flatnonzero(label == value)[::TEST_EVERY]] = 1
    return marks


TEXTURES = PackedSource(
    name="textures",
    title="Textures",
    file_name="dtd10_128_jpeg.npz",
    classes=10,
    side=128,
    validation=VALIDATION_FRACTION,
    marks=every_third,
)


def load_textures(
    *,
    data: str | None = None,
    image_size: int = 128,
    train_limit: int | None = None,
    device: torch.device | None = None,
) -> ImageData:
    """Ten of the 47 texture classes: 640 images to train on, 160 to validate, 400 to test.

    Args:
        data: Folder with ``dtd10_128_jpeg.npz`` or that file; ORTHOTRAIN_DATA when None.
        image_size: Side of the square cut from the centre, after the shorter side was resized
            to it (antialiased); at most 128, which is stored.
        train_limit: Keep about this many training images, stratified; None keeps all.
        device: Where the images live; CPU when None.

    Returns:
        Images ``(n, 3, image_size, image_size)`` uint8. The test part is decoded when it is
        asked for.

    Raises:
        ConfigError: ``image_size`` is below one or above 128.
        DataError: The file is missing, truncated, or not the packed format.

    Note:
        The classes are the first ten by alphabet, and the split is ours (every third image of a
        class is a test image): no number on it compares with published ones on this data set.

    Source:
        Cimpoi et al. (2014), Describing Textures in the Wild, CVPR.
    """
    return load_packed(
        TEXTURES, data=data, image_size=image_size, train_limit=train_limit, device=device
    )
