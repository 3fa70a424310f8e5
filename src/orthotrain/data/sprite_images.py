"""Sprites as bytes without their factors, as a set of images to train a generator on."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from orthotrain.data.lazy import whole_numbers
from orthotrain.data.sprites import Sprites
from orthotrain.errors import ConfigError


class SpriteImages:
    """Stands in for a tensor ``(n, channels, size, size)`` uint8: some sprites of a grid.

    Args:
        sprites: The grid.
        index: ``(n,)`` which of it.
        channels: 1 or 3; a gray image is repeated.
        device: Where sprites are drawn; CPU when None.

    Raises:
        ConfigError: One channel of sprites with a color.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(
        self,
        sprites: Sprites,
        index: Int64[Tensor, " n"],
        *,
        channels: Literal[1, 3] = 3,
        device: torch.device | None = None,
    ) -> None:
        if channels not in (1, 3) or channels < sprites.image_shape[0]:
            raise ConfigError(
                f"{sprites.title}: got channels={channels}, its images have "
                f"{sprites.image_shape[0]}; need 3, or 1 for sprites without color"
            )
        self._sprites = sprites
        self._channels = channels
        self.device = device or torch.device("cpu")
        self._index = index.cpu()

    @property
    def shape(self) -> torch.Size:
        """``(n, channels, size, size)``."""
        return torch.Size((len(self._index), self._channels, *self._sprites.image_shape[1:]))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._index)

    def to(self, device: torch.device) -> SpriteImages:
        """The same sprites, drawn on another device."""
        return SpriteImages(self._sprites, self._index, channels=self._channels, device=device)

    def __getitem__(
        self, index: slice | Int64[Tensor, " k"]
    ) -> UInt8[Tensor, "k channels size size"]:
        """Draw the sprites at ``index``, in its order.

        Raises:
            IndexError: An index is outside the set.
            ShapeError: A tensor that is not one-dimensional or does not hold integers.
        """
        if not isinstance(index, slice):
            index = torch.tensor(whole_numbers(index), dtype=torch.int64)
        images, _ = self._sprites[self._index[index].to(self.device)]
        pixels = (255 * images).round().to(torch.uint8)
        return pixels.expand(-1, self._channels, -1, -1).contiguous()
