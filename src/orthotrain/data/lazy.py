"""Images that stay encoded until a batch asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from orthotrain.data._pixels import centre_square, pillow
from orthotrain.errors import ConfigError, DataError, ShapeError


@runtime_checkable
class ImageArray(Protocol):
    """What stands in for a tensor ``(n, c, height, width)`` of images: indexing makes a batch."""

    @property
    def shape(self) -> torch.Size: ...  # noqa: D102 - as of a tensor
    @property
    def ndim(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Tensor: ...
    def to(self, device: torch.device) -> ImageArray: ...  # noqa: D102


@runtime_checkable
class EncodedImages(Protocol):
    """Encoded images by number, from files or out of an archive."""

    @property
    def title(self) -> str:
        """Name of the data set in messages."""

    def __len__(self) -> int: ...

    def decode(self, i: int, *, size: int, image: ModuleType) -> NDArray[np.uint8]:
        """``centre_square`` of image ``i``; raises ``DataError`` that names it."""


class ImageFiles:
    """Image files, one an image.

    Args:
        files: Their paths.
        title: Name of the data set in messages.
    """

    def __init__(self, files: Sequence[Path], *, title: str) -> None:
        self._files = tuple(files)
        self.title = title

    def __len__(self) -> int:
        """Number of files."""
        return len(self._files)

    def decode(self, i: int, *, size: int, image: ModuleType) -> NDArray[np.uint8]:
        """Pixels ``(size, size, 3)`` of file ``i``.

        Raises:
            DataError: It is missing or does not decode; the message names it.
        """
        try:
            return centre_square(self._files[i], size=size, image=image)[0]
        except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
            raise DataError(
                f"{self.title}: {self._files[i]} does not decode ({error}); need an image that "
                "Pillow reads; replace the file or take it out of the folder"
            ) from error


class LazyImages:
    """Stands in for a tensor ``(n, 3, size, size)`` uint8 in a split; decodes what is indexed.

    Nothing is kept: an image is decoded each time it is asked for, by as many threads as torch
    uses. The result does not depend on their number.

    Args:
        source: The encoded images.
        size: Side of the square cut from the centre, after the shorter side was resized to it.
        device: Where decoded images go; CPU when None.

    Raises:
        ConfigError: ``size`` is below one.
        DataError: Pillow is not installed.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(
        self, source: EncodedImages, *, size: int, device: torch.device | None = None
    ) -> None:
        if size < 1:
            raise ConfigError(f"{source.title}: image_size={size} must be at least 1")
        self._source = source
        self._size = size
        self._pillow = pillow(source.title)
        self.device = device or torch.device("cpu")

    @property
    def shape(self) -> torch.Size:
        """``(n, 3, size, size)``."""
        return torch.Size((len(self._source), 3, self._size, self._size))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._source)

    def to(self, device: torch.device) -> LazyImages:
        """The same images, decoded onto another device."""
        return LazyImages(self._source, size=self._size, device=device)

    def __getitem__(self, index: slice | Int64[Tensor, " k"]) -> UInt8[Tensor, "k 3 size size"]:
        """Decode the images at ``index``, in its order.

        Raises:
            DataError: An image is missing or does not decode; the message names it.
            IndexError: An index is outside the images.
            ShapeError: A tensor that is not one-dimensional or does not hold integers.
        """
        every = range(len(self))
        chosen = (
            every[index] if isinstance(index, slice) else [every[i] for i in whole_numbers(index)]
        )
        images = np.empty((len(chosen), self._size, self._size, 3), dtype=np.uint8)
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            for row, pixels in enumerate(pool.map(self._decode, chosen)):
                images[row] = pixels
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(self.device)

    def _decode(self, i: int) -> NDArray[np.uint8]:
        return self._source.decode(i, size=self._size, image=self._pillow)


def whole_numbers(index: Int64[Tensor, " k"]) -> list[int]:
    """The indices as numbers; a mask would be taken for images 0 and 1, so it is refused.

    Raises:
        ShapeError: Not one-dimensional, or no integers.
    """
    if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise ShapeError(
            f"images: got indices {tuple(index.shape)} of {index.dtype}, need (k,) of int64; "
            "a mask becomes that by .nonzero().flatten()"
        )
    numbers: list[int] = index.tolist()
    return numbers
