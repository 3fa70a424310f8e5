"""CIFAR-10 from one packed local file."""

from __future__ import annotations

import torch

from orthotrain.data.packed import PackedSource, load_packed
from orthotrain.data.splits import ImageData

FILE_NAME = "cifar10_jpeg.npz"
# 5,000 of the 50,000 training images, the usual hold-out for this data set.
VALIDATION_FRACTION = 0.1
CIFAR10 = PackedSource(
    name="cifar10",
    title="CIFAR-10",
    file_name=FILE_NAME,
    classes=10,
    side=32,
    square=True,
    validation=VALIDATION_FRACTION,
)


def load_cifar10(
    *, data: str | None = None, train_limit: int | None = None, device: torch.device | None = None
) -> ImageData:
    """CIFAR-10 with 10 % of the training part held out, stratified, as validation part.

    Args:
        data: Folder with ``cifar10_jpeg.npz`` or that file; ORTHOTRAIN_DATA when None.
        train_limit: Keep about this many training images, stratified; None keeps all.
        device: Where the images live; CPU when None.

    Returns:
        Images ``(n, 3, 32, 32)`` uint8. The test part is decoded when it is asked for.

    Raises:
        DataError: The file is missing, truncated, or not the packed format.

    Note:
        The shared file is a JPEG (quality 75, 4:2:0) copy: report accuracy as such.

    Source:
        Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
    """
    return load_packed(
        CIFAR10, data=data, image_size=CIFAR10.side, train_limit=train_limit, device=device
    )
