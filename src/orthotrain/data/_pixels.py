"""From an encoded image to the bytes of a centred square, with Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from orthotrain.errors import DataError


def pillow(title: str) -> ModuleType:
    """The module ``PIL.Image``; ``title`` names the data set that needs it.

    Raises:
        DataError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"{title}: decoding needs Pillow, which is not installed; install it with: "
            "pip install 'orthotrain[data]'"
        ) from error
    return Image


def centre_square(
    source: bytes | Path, *, size: int, image: ModuleType
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The middle of one image: shorter side to ``size``, then the sides cropped evenly.

    Args:
        source: An encoded image or its file. Gray and palette images become RGB.
        size: Side of the square in pixels; an image whose shorter side has it is not resized.
        image: The module ``PIL.Image``.

    Returns:
        Pixels ``(size, size, 3)`` and the (width, height) the image was stored with.

    Raises:
        ValueError, OSError, SyntaxError: The image does not decode (Pillow's own errors).
    """
    with image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        stored = opened.size
        # Pillow clips such pixels at 255 without a word.
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"mode {opened.mode} has more than 8 bits a channel")
        pixels = opened.convert("RGB")
    width, height = stored
    if min(stored) != size:
        scale = size / min(stored)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        pixels = pixels.resize((width, height), image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(pixels.crop((left, top, left + size, top + size))), stored
