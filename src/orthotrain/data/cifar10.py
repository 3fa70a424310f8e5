"""CIFAR-10 from one packed local file; decoded once with Pillow, kept as uint8."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from orthotrain.data.splits import ImageData, Split, limited, stratified_split
from orthotrain.errors import DataError

FILE_NAME = "cifar10_jpeg.npz"
ENVIRONMENT_VARIABLE = "ORTHOTRAIN_DATA"
SPLIT_SEED = 20240807
# 5,000 of the 50,000 training images, the usual hold-out for this data set.
VALIDATION_FRACTION = 0.1
CLASSES = 10
IMAGE_SHAPE = (32, 32, 3)
# Values of the column "split".
TRAIN, TEST = 0, 1


@dataclass(frozen=True)
class _Archive:
    """JPEG files end to end: image i is ``data[offsets[i]:offsets[i + 1]]``."""

    path: Path
    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    label: NDArray[np.int64]
    split: NDArray[np.int64]


def find_archive(data: str | None) -> Path:
    """Path of the packed file: ``data`` (a folder or the file itself), else ORTHOTRAIN_DATA.

    Raises:
        DataError: Neither is given, or the file is not there.
    """
    source = "--data.dir" if data else ENVIRONMENT_VARIABLE
    place = data or os.environ.get(ENVIRONMENT_VARIABLE)
    if not place:
        raise DataError(
            f"CIFAR-10: no folder was given; need the packed file {FILE_NAME}; pass "
            f"--data.dir DIR or set {ENVIRONMENT_VARIABLE} to the folder that holds it"
        )
    path = Path(place).expanduser()
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise DataError(
            f"CIFAR-10: {path} (from {source}) does not exist; need the packed file {FILE_NAME}; "
            f"pass --data.dir DIR or set {ENVIRONMENT_VARIABLE} to the folder that holds it"
        )
    return path


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
    path = find_archive(data)
    place = device or torch.device("cpu")
    stamp = path.stat()
    pool = _decoded_train(path, stamp.st_size, stamp.st_mtime_ns)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train, validation = stratified_split(
        pool.labels, fractions=(VALIDATION_FRACTION,), generator=generator
    )
    train = limited(train, labels=pool.labels, limit=train_limit, generator=generator)
    return ImageData(
        name="cifar10",
        train=Split(pool.images[train], pool.labels[train]).to(place),
        validation=Split(pool.images[validation], pool.labels[validation]).to(place),
        read_test=lambda: _decode(_open_archive(path), TEST).to(place),
        classes=CLASSES,
    )


# A worker trains several seeds and variants one after another; size and time of the file are
# part of the key, so a replaced file is decoded anew.
@lru_cache(maxsize=1)
def _decoded_train(path: Path, size: int, modified_ns: int) -> Split:
    return _decode(_open_archive(path), TRAIN)


def _open_archive(path: Path) -> _Archive:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            archive = _Archive(
                path=path,
                data=packed["data"],
                offsets=packed["offsets"].astype(np.int64),
                label=packed["label"].astype(np.int64),
                split=packed["split"].astype(np.int64),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    count = len(archive.label)
    if len(archive.offsets) != count + 1 or len(archive.split) != count:
        raise _damaged(
            path,
            f"{count} labels, {len(archive.offsets)} offsets and {len(archive.split)} split marks",
        )
    if count == 0 or archive.offsets[-1] != len(archive.data):
        raise _damaged(path, f"offsets do not end at the {len(archive.data)} bytes of data")
    return archive


def _decode(archive: _Archive, part: int) -> Split:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError(
            "CIFAR-10: decoding needs Pillow, which is not installed; install it with: "
            "pip install 'orthotrain[data]'"
        ) from error
    index = np.flatnonzero(archive.split == part)
    if len(index) == 0:
        raise _damaged(archive.path, f"no image has split mark {part}")
    images = np.empty((len(index), *IMAGE_SHAPE), dtype=np.uint8)
    for row, i in enumerate(index):
        blob = archive.data[archive.offsets[i] : archive.offsets[i + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(blob)) as image:
                pixels = np.asarray(image)
        except (UnidentifiedImageError, OSError) as error:
            raise _damaged(archive.path, f"image {i} does not decode: {error}") from error
        if pixels.shape != IMAGE_SHAPE:
            raise _damaged(archive.path, f"image {i} has shape {pixels.shape}")
        images[row] = pixels
    labels = torch.from_numpy(archive.label[index])
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


def _damaged(path: Path, found: str) -> DataError:
    return DataError(
        f"CIFAR-10: {path} is damaged or of another format ({found}); need the packed arrays "
        "data, offsets, label and split; copy the file again and compare its size and checksum"
    )
