"""Photographs of single garments, ten look-alike classes, from one packed local file."""

from __future__ import annotations

import torch

from orthotrain.data.packed import PackedSource, load_packed
from orthotrain.data.splits import ImageData

CLOTHING = PackedSource(
    name="clothing",
    title="Clothing",
    file_name="clothing128_jpeg.npz",
    classes=10,
    side=128,
    validation=1,
    test=2,
)


def load_clothing(
    *,
    data: str | None = None,
    image_size: int = 128,
    train_limit: int | None = None,
    device: torch.device | None = None,
) -> ImageData:
    """Garments in the split they were published with: 3,068 train, 341 validation, 372 test.

    Args:
        data: Folder with ``clothing128_jpeg.npz`` or that file; ORTHOTRAIN_DATA when None.
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
        The classes are unbalanced, from 112 skirts to 795 t-shirts in the training part:
        guessing t-shirt every time is right on 14 % of the test part, longsleeve on 19 %.

    Source:
        Grigorev, clothing-dataset-small, https://github.com/alexeygrigorev (CC0).
    """
    return load_packed(
        CLOTHING, data=data, image_size=image_size, train_limit=train_limit, device=device
    )
