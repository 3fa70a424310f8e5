"""Packed JPEG archives: one file with all images end to end; decoded once, or batch by batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from orthotrain.data._pixels import centre_square
from orthotrain.data.lazy import LazyImages
from orthotrain.data.splits import (
    SPLIT_SEED,
    ImageData,
    Part,
    Split,
    limited,
    stratified_split,
)
from orthotrain.errors import ConfigError, DataError
from orthotrain.files import UNREADABLE_ARRAYS

ENVIRONMENT_VARIABLE = "ORTHOTRAIN_DATA"
TRAIN = 0


@dataclass(frozen=True)
class PackedSource:
    """What one packed file holds and how it is split.

    Attributes:
        name: Name of the data set in a run's record.
        title: Its name in messages.
        file_name: The file that is looked for in a folder.
        classes: Number of classes; labels run from 0. 0 where the file has no column ``label``.
        side: Shorter side of every stored image in pixels.
        square: Whether both sides must have that length.
        validation: Split mark of the validation part, or the share of the training part (mark
            0) that is held out for it, stratified.
        test: Split mark of the test part.
        marks: Split mark of each image from its label (all zero without labels), where the file
            has no column ``split``.
    """

    name: str
    title: str
    file_name: str
    classes: int
    side: int
    square: bool = False
    validation: int | float = 0.1
    test: int = 1
    marks: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None


@dataclass(frozen=True)
class _Version:
    """A file as it is now; a replaced file is another version."""

    path: Path
    size: int
    modified_ns: int


@dataclass(frozen=True)
class _Archive:
    """JPEG files end to end: image i is ``data[offsets[i]:offsets[i + 1]]``."""

    path: Path
    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    label: NDArray[np.int64]
    split: NDArray[np.int64]


def data_path(data: str | None, *, title: str, need: str) -> tuple[Path, str]:
    """The path ``data``, else that in ORTHOTRAIN_DATA, and which of the two it came from.

    Args:
        data: A path, or None.
        title: Name of the data set in the message.
        need: What should be there, in words.

    Raises:
        DataError: Neither is given.
    """
    source = "--data.dir" if data else ENVIRONMENT_VARIABLE
    place = data or os.environ.get(ENVIRONMENT_VARIABLE)
    if not place:
        raise DataError(
            f"{title}: no folder was given; need {need}; pass --data.dir DIR or set "
            f"{ENVIRONMENT_VARIABLE} to the folder that holds it"
        )
    return Path(place).expanduser(), source


def find_packed(source: PackedSource, *, data: str | None) -> Path:
    """Path of the packed file: ``data`` (a folder or the file itself), else ORTHOTRAIN_DATA.

    Raises:
        DataError: Neither is given, or the file is not there.
    """
    need = f"the packed file {source.file_name}"
    path, origin = data_path(data, title=source.title, need=need)
    path = path / source.file_name if path.is_dir() else path
    if not path.is_file():
        raise DataError(
            f"{source.title}: {path} (from {origin}) does not exist; need {need}; pass "
            f"--data.dir DIR or set {ENVIRONMENT_VARIABLE} to the folder that holds it"
        )
    return path


def load_packed(
    source: PackedSource,
    *,
    data: str | None,
    image_size: int,
    train_limit: int | None,
    device: torch.device | None,
) -> ImageData:
    """The three parts of a packed file; the test part is decoded when it is asked for.

    Args:
        source: Which file, and how it is split.
        data: Folder with the file or the file itself; ORTHOTRAIN_DATA when None.
        image_size: Side of the images given, at most ``source.side``: each image is resized to
            this shorter side (antialiased) where it is not so already, then cropped to its
            centre.
        train_limit: Keep about this many training images, stratified; None keeps all.
        device: Where the images live; CPU when None.

    Returns:
        Images ``(n, 3, image_size, image_size)`` uint8.

    Raises:
        ConfigError: ``image_size`` is below one or above what is stored.
        DataError: The file is missing, truncated, or not the packed format.
    """
    _require_size(source, image_size)
    version = _find_version(source, data)
    path = version.path
    place = device or torch.device("cpu")
    train, validation = _train_and_validation(source, version, image_size, train_limit)

    def read_test() -> Split:
        archive = _open_archive(source, path)
        return _decode(source, archive, _marked(source, archive, source.test), image_size).to(place)

    return ImageData(
        name=source.name,
        train=train.to(place),
        validation=validation.to(place),
        read_test=read_test,
        classes=source.classes,
    )


def lazy_packed(
    source: PackedSource, *, data: str | None, image_size: int, part: Part
) -> LazyImages:
    """The images of one part, in the split of ``load_packed``, decoded where they are indexed.

    The encoded file is kept in memory.

    Args:
        source: Which file, and how it is split.
        data: Folder with the file or the file itself; ORTHOTRAIN_DATA when None.
        image_size: As in ``load_packed``.
        part: The whole part; there is no ``train_limit``.

    Raises:
        ConfigError: ``image_size`` is below one or above what is stored.
        DataError: The file is missing, truncated, or not the packed format. An image that does
            not decode is named where it is indexed.
    """
    _require_size(source, image_size)
    archive = _kept_archive(source, _find_version(source, data))
    if part == "test":
        index = _marked(source, archive, source.test)
    else:
        train, validation = _train_and_validation_index(source, archive, None)
        index = train if part == "train" else validation
    return LazyImages(_PackedImages(source, archive, index), size=image_size)


class _PackedImages:
    """Some images of an archive, in a given order."""

    def __init__(self, source: PackedSource, archive: _Archive, index: NDArray[np.int64]) -> None:
        self.title = source.title
        self._source = source
        self._archive = archive
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def decode(self, i: int, *, size: int, image: ModuleType) -> NDArray[np.uint8]:
        source, archive, k = self._source, self._archive, self._index[i]
        blob = archive.data[archive.offsets[k] : archive.offsets[k + 1]].tobytes()
        try:
            pixels, stored = centre_square(blob, size=size, image=image)
        except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
            raise _damaged(source, archive.path, f"image {k} does not decode: {error}") from error
        if min(stored) != source.side or (source.square and max(stored) != source.side):
            raise _damaged(source, archive.path, f"image {k} has size {stored}")
        return pixels


def _require_size(source: PackedSource, image_size: int) -> None:
    if not 1 <= image_size <= source.side:
        raise ConfigError(
            f"{source.title}: image_size={image_size} must lie between 1 and {source.side}, the "
            "shorter side of the stored images"
        )


def _find_version(source: PackedSource, data: str | None) -> _Version:
    path = find_packed(source, data=data)
    stamp = path.stat()
    return _Version(path, stamp.st_size, stamp.st_mtime_ns)


# A worker trains several seeds and variants one after another on the same images.
@lru_cache(maxsize=1)
def _train_and_validation(
    source: PackedSource, version: _Version, image_size: int, train_limit: int | None
) -> tuple[Split, Split]:
    archive = _open_archive(source, version.path)
    train, validation = _train_and_validation_index(source, archive, train_limit)
    return (
        _decode(source, archive, train, image_size),
        _decode(source, archive, validation, image_size),
    )


def _train_and_validation_index(
    source: PackedSource, archive: _Archive, train_limit: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    train = _marked(source, archive, TRAIN)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    labels = torch.from_numpy(archive.label[train])
    if isinstance(source.validation, int):
        kept = torch.arange(len(train))
        validation = _marked(source, archive, source.validation)
    else:
        kept, held_out = stratified_split(
            labels, fractions=(source.validation,), generator=generator
        )
        validation = train[held_out.numpy()]
    kept = limited(kept, labels=labels, limit=train_limit, generator=generator)
    return train[kept.numpy()], validation


# The parts of one data set share its bytes.
@lru_cache(maxsize=1)
def _kept_archive(source: PackedSource, version: _Version) -> _Archive:
    return _open_archive(source, version.path)


def _open_archive(source: PackedSource, path: Path) -> _Archive:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            offsets = packed["offsets"].astype(np.int64)
            if source.classes:
                label = packed["label"].astype(np.int64)
            else:
                label = np.zeros_like(offsets[1:])
            marks = source.marks
            archive = _Archive(
                path=path,
                data=packed["data"],
                offsets=offsets,
                label=label,
                split=packed["split"].astype(np.int64) if marks is None else marks(label),
            )
    except UNREADABLE_ARRAYS as error:
        raise _damaged(source, path, f"{type(error).__name__}: {error}") from error
    count = len(label)
    if len(archive.offsets) != count + 1 or len(archive.split) != count:
        raise _damaged(
            source,
            path,
            f"{count} labels, {len(archive.offsets)} offsets and {len(archive.split)} split marks",
        )
    if count == 0 or archive.offsets[-1] != len(archive.data):
        raise _damaged(source, path, f"offsets do not end at the {len(archive.data)} bytes of data")
    if np.diff(archive.offsets, prepend=0).min() < 0:
        raise _damaged(source, path, "an offset is smaller than the one before it")
    if source.classes and (label.min() < 0 or label.max() >= source.classes):
        raise _damaged(
            source, path, f"labels {label.min()} to {label.max()} for {source.classes} classes"
        )
    return archive


def _marked(source: PackedSource, archive: _Archive, mark: int) -> NDArray[np.int64]:
    index = np.flatnonzero(archive.split == mark)
    if len(index) == 0:
        raise _damaged(source, archive.path, f"no image has split mark {mark}")
    return index


def _decode(
    source: PackedSource, archive: _Archive, index: NDArray[np.int64], image_size: int
) -> Split:
    images = LazyImages(_PackedImages(source, archive, index), size=image_size)
    return Split(images[:], torch.from_numpy(archive.label[index]))


def _damaged(source: PackedSource, path: Path, found: str) -> DataError:
    columns = "data, offsets"
    columns += ", label" if source.classes else ""
    columns += "" if source.marks else ", split"
    return DataError(
        f"{source.title}: {path} is damaged or of another format ({found}); need the packed arrays "
        f"{columns}; copy the file again and compare its size and checksum"
    )
