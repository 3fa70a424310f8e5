"""From an encoded image to the bytes of a centred square, with Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orthotrain.extras import optional_module

# What shows through transparent pixels: their own color is often black or left over.
BACKGROUND = "white"


def pillow(title: str) -> ModuleType:
    """The module ``PIL.Image``; ``title`` names the data set that needs it.

    Raises:
        MissingPackageError: Pillow is not installed.
    """
    module: ModuleType = optional_module(f"{title}: images", "PIL.Image", package="Pillow")
    return module


def centre_square(
    source: bytes | Path, *, size: int, image: ModuleType
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The middle of one image: RGB, shorter side to ``size``, then the sides cropped evenly.

    This is the one way from a file to pixels, in training and in scoring. Gray is repeated in
    three channels; a palette is looked up; CMYK and others go through Pillow's formula, without
    color profiles; transparent pixels are laid over white; of 16 bits a channel the upper eight
    are kept. The first frame counts, and a note on orientation (EXIF) does not. Resizing is
    bilinear, averages over what it drops, and also enlarges.

    Args:
        source: An encoded image or its file.
        size: Side of the square in pixels; an image whose shorter side has it is not resized.
        image: The module ``PIL.Image``.

    Returns:
        Pixels ``(size, size, 3)`` and the (width, height) the image was stored with.

    Raises:
        ValueError, OSError, SyntaxError: The image does not decode (Pillow's own errors), or its
            numbers have no known range (32-bit and float images).
    """
    with image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        stored = opened.size
        pixels = _as_rgb(opened, image)
    width, height = stored
    if min(stored) != size:
        scale = size / min(stored)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        pixels = pixels.resize((width, height), image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(pixels.crop((left, top, left + size, top + size))), stored


def _as_rgb(opened: Any, image: ModuleType) -> Any:
    if opened.mode.startswith("I;16"):
        if "transparency" in opened.info:
            raise ValueError("16-bit gray with a transparent value is not supported")
        # Pillow does the same to 16-bit color, but clips 16-bit gray at 255.
        return image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)).convert("RGB")
    if opened.mode.startswith(("I", "F")):
        raise ValueError(f"mode {opened.mode} does not say the range of its values")
    if opened.has_transparency_data:
        page = image.new("RGBA", opened.size, BACKGROUND)
        page.alpha_composite(opened.convert("RGBA"))
        return page.convert("RGB")
    return opened.convert("RGB")
