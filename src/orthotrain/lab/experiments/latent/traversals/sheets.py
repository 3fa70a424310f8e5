"""Many small frames as one picture: what a page carries instead of thousands of files."""

from __future__ import annotations

import base64
import io
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from orthotrain.errors import ConfigError, ShapeError

# Of WebP, 1 to 100.
_QUALITY: Final = 90
# The WebP format has 14 bits for each side (RFC 9649, section 3.4).
_MAX_SIDE: Final = 16383


def columns_of(cells: int) -> int:
    """Cells in a row of a sheet that holds ``cells`` of them, nearly a square."""
    return math.ceil(math.sqrt(cells))


def sheet_uri(frames: NDArray[np.uint8]) -> str:
    """A sheet of frames, row by row, as the address of a WebP picture that needs no file.

    A sheet that is no larger without loss, such as one of flat shapes, keeps every pixel.

    Args:
        frames: ``(cells, height, width, channels)`` with one or three channels.

    Returns:
        A ``data:`` address.

    Raises:
        ShapeError: A side of the sheet is longer than WebP can hold.
        ConfigError: Pillow was built without WebP.
    """
    if not features.check("webp"):
        raise ConfigError(
            "sheets of frames need a Pillow with WebP, and this one was built without it; "
            "install Pillow's own wheel: pip install --force-reinstall pillow"
        )
    image = Image.fromarray(_sheet(frames))
    best = min(_webp(image, lossless=True), _webp(image, quality=_QUALITY), key=len)
    return f"data:image/webp;base64,{base64.b64encode(best).decode()}"


def _sheet(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cells, height, width, channels = frames.shape
    columns = columns_of(cells)
    rows = math.ceil(cells / columns)
    if max(rows * height, columns * width) > _MAX_SIDE:
        raise ShapeError(
            f"a sheet of {cells} frames of {height} x {width} pixels is longer than the "
            f"{_MAX_SIDE} pixels WebP can hold; give smaller frames, fewer steps or dimensions"
        )
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:cells] = frames
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    # Pillow has no mode for one channel in a third axis.
    return sheet[..., 0] if channels == 1 else sheet


def _webp(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", **options)
    return out.getvalue()
