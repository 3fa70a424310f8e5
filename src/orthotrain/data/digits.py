"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, embedded, nothing to download."""

from __future__ import annotations

import numpy as np
import torch

from orthotrain.data.splits import SPLIT_SEED, ImageData, Split, limited, stratified_split
from orthotrain.extras import optional_module

VALIDATION_FRACTION = 0.2
TEST_FRACTION = 0.2
# scikit-learn documents the pixels as integers 0..16.
MAX_PIXEL = 16.0


def load_digits(*, train_limit: int | None = None, device: torch.device | None = None) -> ImageData:
    """The digits in three fixed stratified parts: 60 % train, 20 % validation, 20 % test.

    Args:
        train_limit: Keep about this many training images, stratified; None keeps all.
        device: Where the images live; CPU when None.

    Returns:
        Images ``(n, 1, 8, 8)`` float32 in [0, 1], shifted and scaled by the mean and the
        standard deviation of the training part.

    Raises:
        MissingPackageError: scikit-learn, which brings the digits, is not installed.

    Source:
        Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; the test
        part of it, as shipped with scikit-learn.
    """
    bunch = optional_module("load_digits", "sklearn.datasets", package="scikit-learn").load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32))[:, None] / MAX_PIXEL
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train, validation, test = stratified_split(
        labels,
        fractions=(VALIDATION_FRACTION, TEST_FRACTION),
        generator=generator,
    )
    train = limited(train, labels=labels, limit=train_limit, generator=generator)
    std, mean = torch.std_mean(images[train])

    def part(index: torch.Tensor) -> Split:
        return Split((images[index] - mean) / std, labels[index]).to(device or torch.device("cpu"))

    return ImageData(
        name="digits",
        train=part(train),
        validation=part(validation),
        read_test=lambda: part(test),
        classes=10,
    )
