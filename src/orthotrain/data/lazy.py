"""Images that stay on disk until a batch asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from orthotrain.data._pixels import centre_square, pillow
from orthotrain.errors import ConfigError, DataError


class LazyImages:
    """Stands in for a tensor ``(n, 3, size, size)`` uint8 in a split; decodes what is indexed.

    Nothing is kept: an image is decoded each time it is asked for, by as many threads as torch
    uses. The result does not depend on their number.

    Args:
        files: One image file each.
        size: Side of the square cut from the centre, after the shorter side was resized to it.
        title: Name of the data set in messages.
        device: Where decoded images go; CPU when None.

    Raises:
        ConfigError: ``size`` is below one.
        DataError: Pillow is not installed.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(
        self, files: Sequence[Path], *, size: int, title: str, device: torch.device | None = None
    ) -> None:
        if size < 1:
            raise ConfigError(f"{title}: image_size={size} must be at least 1")
        self._files = tuple(files)
        self._size = size
        self._title = title
        self._pillow = pillow(title)
        self.device = device or torch.device("cpu")

    @property
    def shape(self) -> torch.Size:
        """``(n, 3, size, size)``."""
        return torch.Size((len(self._files), 3, self._size, self._size))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def to(self, device: torch.device) -> LazyImages:
        """The same files, decoded onto another device."""
        return LazyImages(self._files, size=self._size, title=self._title, device=device)

    def __getitem__(self, index: slice | Int64[Tensor, " k"]) -> UInt8[Tensor, "k 3 size size"]:
        """Decode the images at ``index``, in its order.

        Raises:
            DataError: A file is missing or does not decode; the message names it.
        """
        if isinstance(index, slice):
            chosen = self._files[index]
        else:
            chosen = tuple(self._files[i] for i in index.tolist())
        images = np.empty((len(chosen), self._size, self._size, 3), dtype=np.uint8)
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            for row, pixels in enumerate(pool.map(self._decode, chosen)):
                images[row] = pixels
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(self.device)

    def _decode(self, file: Path) -> NDArray[np.uint8]:
        try:
            return centre_square(file, size=self._size, image=self._pillow)[0]
        except (OSError, SyntaxError, ValueError, self._pillow.DecompressionBombError) as error:
            raise DataError(
                f"{self._title}: {file} does not decode ({error}); need an image that Pillow "
                "reads; replace the file or take it out of the folder"
            ) from error
