"""Folders of images: laid out like ImageNet, by part and class, or in any other way."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from orthotrain.data.lazy import ImageFiles, LazyImages
from orthotrain.data.packed import data_path
from orthotrain.data.splits import (
    SPLIT_SEED,
    ImageData,
    Part,
    Split,
    limited,
    random_parts,
    stratified_split,
)
from orthotrain.errors import DataError

_logger = logging.getLogger("orthotrain")
# Of the training part, where the folder has no validation part beside its test part.
VALIDATION_FRACTION = 0.1
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
# Parts that decode to more than this stay on disk. A full-size ImageNet is 193 GB at 224 pixels.
MAX_DECODED_BYTES = 4 * 2**30
_LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg or test/CLASS/*.jpg"


@dataclass(frozen=True)
class _Part:
    """Image files of one part in the order of class and file name."""

    files: tuple[Path, ...]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]


def load_image_folder(
    folder: str | None = None,
    *,
    image_size: int = 224,
    validation_fraction: float = VALIDATION_FRACTION,
    train_limit: int | None = None,
    lazy: bool | None = None,
    device: torch.device | None = None,
) -> ImageData:
    """A tree of ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` or ``test/CLASS/*.jpg``.

    The classes are the folder names in sorted order. With both ``val`` and ``test`` the parts
    are as named. With one of them that one is the *test* part, which a run reads once at its
    end, and ``validation_fraction`` of the training part is held out, stratified, for
    everything else. ImageNet's ``test`` folder, which has no classes, counts as absent.

    Args:
        folder: The folder that holds the parts; ORTHOTRAIN_DATA when None.
        image_size: Side of the square cut from the centre, after the shorter side was resized
            to it (antialiased). The same in all parts.
        validation_fraction: Share of the training part to hold out, rounded in each class.
        train_limit: Keep about this many training images, stratified; None keeps all.
        lazy: Leave the images on disk and decode each batch when it is asked for (see
            ``LazyImages``); None does so where the decoded parts exceed 4 GiB.
        device: Where the images live; CPU when None.

    Returns:
        Images ``(n, 3, image_size, image_size)`` uint8, named after the folder. The test part
        is read when it is asked for. Hidden files, and those whose suffix is none of jpg, jpeg,
        png, bmp and webp, are left out.

    Raises:
        ConfigError: ``image_size`` is below one.
        DataError: A part is missing, a class is empty, the only one, not in all parts or too small
            to hold some of it out, or a file does not decode; the message names it. Lazy images
            raise when they are asked for.
    """
    path, origin = data_path(folder, title="image folder", need=_LAYOUT)
    if not (path / "train").is_dir():
        raise DataError(
            f"image folder: {path} (from {origin}) has no folder train; need {_LAYOUT} in it"
        )
    train = _list_part(path / "train")
    held = [path / part for part in ("val", "test") if _class_folders(path / part)]
    if not held:
        raise DataError(
            f"image folder: {path} (from {origin}) has neither val nor test with classes in "
            f"them; need {_LAYOUT}; set images apart for a test"
        )
    parts = [_same_classes(train, _list_part(part), part) for part in held]
    test = parts[-1]
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    kept = torch.arange(len(train.files))
    validation = parts[0]
    if len(parts) == 1:
        kept, held_out = stratified_split(
            train.labels, fractions=(validation_fraction,), generator=generator
        )
        validation = _subset(train, held_out)
    kept = limited(kept, labels=train.labels, limit=train_limit, generator=generator)
    train = _subset(train, kept)
    if lazy is None:
        size = (len(train.files) + len(validation.files)) * 3 * image_size**2
        lazy = size > MAX_DECODED_BYTES
        if lazy:
            _logger.info(
                "%s: %.1f GiB of decoded images stay on disk; each batch is decoded when asked for",
                path,
                size / 2**30,
            )
    place = device or torch.device("cpu")
    return ImageData(
        name=path.name,
        train=_read(train, size=image_size, lazy=lazy).to(place),
        validation=_read(validation, size=image_size, lazy=lazy).to(place),
        read_test=lambda: _read(test, size=image_size, lazy=lazy, cached=False).to(place),
        classes=len(train.classes),
    )


def lazy_folder(folder: str | None, *, image_size: int, part: Part) -> tuple[str, LazyImages]:
    """Images without labels: every image file below a folder, whatever its layout.

    A folder with a folder ``train`` in it has parts: ``train``, ``val`` and ``test``, each in
    any layout. With one of the latter two that one is the test part, as in
    ``load_image_folder``, and a tenth of ``train`` is held out to validate. A part without
    images counts as absent. Without any, all images are cut at random (always the same) into
    eight tenths, one and one. Hidden files and folders are left out.

    Args:
        folder: The folder; ORTHOTRAIN_DATA when None.
        image_size: Side of the square cut from the centre, after the shorter side was resized
            to it (antialiased).
        part: Which part.

    Returns:
        The folder's name, and images ``(n, 3, image_size, image_size)`` in the order of their
        paths.

    Raises:
        ConfigError: ``image_size`` is below one.
        DataError: The folder is missing, holds no image or too few to hold some of them out. A
            file that does not decode is named where it is indexed.
    """
    path, origin = data_path(folder, title="image folder", need="a folder of images")
    if not path.is_dir():
        raise DataError(
            f"image folder: {path} (from {origin}) is no folder; need one that holds images"
        )
    return path.name, _lazy(_unlabelled(path)[part], image_size)


def _unlabelled(folder: Path) -> dict[Part, tuple[Path, ...]]:
    whole = folder / "train" if (folder / "train").is_dir() else folder
    files = _images_below(whole)
    if not files:
        raise DataError(
            f"image folder: {whole} holds no image; need files that end in "
            f"{', '.join(sorted(SUFFIXES))}, in it or in folders below"
        )
    held = [_images_below(folder / part) for part in ("val", "test") if whole != folder]
    held = [found for found in held if found]
    parts: list[Part] = ["train", "validation", "test"]
    cut: dict[Part, tuple[Path, ...]] = dict(zip(parts[3 - len(held) :], held, strict=True))
    if len(held) == 2:
        return cut | {"train": files}
    index = random_parts(len(files), parts=parts[: 3 - len(held)], title=f"image folder: {whole}")
    return cut | {part: tuple(files[i] for i in chosen.tolist()) for part, chosen in index.items()}


def _images_below(folder: Path) -> tuple[Path, ...]:
    found = {p.relative_to(folder): p for p in folder.rglob("*") if _is_image(p)}
    shown = (p for p in found if not any(name.startswith(".") for name in p.parts))
    return tuple(found[p] for p in sorted(shown))


def _is_image(path: Path) -> bool:
    """A visible file by its suffix: macOS leaves a hidden ``._name.jpg`` beside each image."""
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()


def _class_folders(part: Path) -> list[Path]:
    if not part.is_dir():
        return []
    folders = (p for p in part.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(folders, key=lambda p: p.name)


def _list_part(part: Path) -> _Part:
    files: list[Path] = []
    labels: list[int] = []
    folders = _class_folders(part)
    for label, folder in enumerate(folders):
        found = [p for p in folder.iterdir() if _is_image(p)]
        if not found:
            raise DataError(
                f"image folder: {folder} holds no image; need files that end in "
                f"{', '.join(sorted(SUFFIXES))}; remove the class from every part or fill it"
            )
        files += sorted(found, key=lambda p: p.name)
        labels += [label] * len(found)
    if not files:
        raise DataError(f"image folder: {part} holds no class; need {_LAYOUT}")
    if len(folders) == 1:
        raise DataError(
            f"image folder: {part} holds one class, {folders[0].name}; nothing can be learned from "
            f"that: need at least two, {_LAYOUT}"
        )
    return _Part(tuple(files), torch.tensor(labels), tuple(p.name for p in folders))


def _same_classes(train: _Part, other: _Part, folder: Path) -> _Part:
    if other.classes != train.classes:
        missing = sorted(set(train.classes) - set(other.classes))
        unknown = sorted(set(other.classes) - set(train.classes))
        raise DataError(
            f"image folder: {folder} lacks the classes {missing[:3]} ({len(missing)} in all) of "
            f"train and has {unknown[:3]} ({len(unknown)} in all) of its own; need the same in "
            "every part"
        )
    return other


def _subset(part: _Part, index: Int64[Tensor, " k"]) -> _Part:
    files = tuple(part.files[i] for i in index.tolist())
    return _Part(files, part.labels[index], part.classes)


def _read(part: _Part, *, size: int, lazy: bool, cached: bool = True) -> Split:
    images = _lazy(part.files, size)
    if lazy:
        return Split(images, part.labels)
    if not cached:
        return Split(images[:], part.labels)
    stamps = tuple((p.stat().st_size, p.stat().st_mtime_ns) for p in part.files)
    return Split(_decoded(part.files, stamps, size), part.labels)


# Training and validation part: a worker trains several seeds and variants on the same images.
# Size and time of each file are part of the key, so a replaced file is decoded anew.
@lru_cache(maxsize=2)
def _decoded(
    files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...], size: int
) -> UInt8[Tensor, "n 3 size size"]:
    return _lazy(files, size)[:]


def _lazy(files: tuple[Path, ...], size: int) -> LazyImages:
    return LazyImages(ImageFiles(files, title="image folder"), size=size)
