"""Images without labels through one interface: faces, garments, CIFAR-10, a folder, sprites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from orthotrain._doors import checked
from orthotrain.data.cifar10 import CIFAR10
from orthotrain.data.clothing import CLOTHING
from orthotrain.data.faces import FACES
from orthotrain.data.image_folder import lazy_folder
from orthotrain.data.lazy import ImageArray
from orthotrain.data.packed import lazy_packed
from orthotrain.data.splits import Part, Split, random_parts
from orthotrain.data.sprite_images import SpriteImages
from orthotrain.data.sprites import Sprites
from orthotrain.data.textures import TEXTURES
from orthotrain.errors import ConfigError

ImageSetName = Literal["faces", "clothing", "cifar10", "textures", "image-folder", "sprites"]
PACKED = {source.name: source for source in (FACES, CLOTHING, CIFAR10, TEXTURES)}


@dataclass(frozen=True)
class ImageSet:
    """One part of a set of images; ``[indices]`` gives ``(k, channels, size, size)`` uint8.

    Attributes:
        name: Name of the set in a run's record.
        title: Its name in texts and tables.
        part: Which part of it.
        images: Stands in for a tensor ``(n, channels, size, size)``; made where it is indexed.
    """

    name: str
    title: str
    part: Part
    images: ImageArray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: slice | Int64[Tensor, " k"]) -> UInt8[Tensor, "k c size size"]:
        """The images at ``index``, in its order; see ``image_set`` for how they are made.

        Raises:
            DataError: An image is missing or does not decode; the message names it.
            IndexError: An index is outside the set.
            ShapeError: A tensor that is not one-dimensional or does not hold integers.
        """
        return self.images[index]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, size, size)`` of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> ImageSet:
        """The same images, given on another device."""
        return ImageSet(self.name, self.title, self.part, self.images.to(device))

    def split(self) -> Split:
        """The images as a ``Split`` with label 0 throughout, for ``BatchStream``."""
        labels = torch.zeros(len(self), dtype=torch.int64, device=self.images.device)
        return Split(self.images, labels)


@checked
def image_set(
    source: ImageSetName | Sprites,
    *,
    data: str | None = None,
    image_size: int | None = None,
    part: Part = "train",
    channels: Literal[1, 3] = 3,
) -> ImageSet:
    """One part of a set of images, decoded or drawn as it is indexed.

    Images become RGB squares in one way, for training and for scoring: transparent pixels over
    white, gray repeated, the upper eight of sixteen bits, the shorter side resized to
    ``image_size`` (bilinear, antialiased) where it is not so already, and the centre cut out.

    Args:
        source: ``"faces"``, ``"clothing"``, ``"cifar10"`` or ``"textures"``: the packed file of
            that name. ``"image-folder"``: every jpg, jpeg, png, bmp and webp file below a
            folder, in any layout. ``"sprites"`` or a ``Sprites``: the grid, drawn; bytes are
            rounded.
        data: The folder of images, or the packed file or its folder; ORTHOTRAIN_DATA when None.
        image_size: Side in pixels. None keeps that of the source: 64 for faces and sprites, 128
            for garments and textures, 32 for CIFAR-10; a folder has none. Packed images are not
            enlarged, and a ``Sprites`` has its size.
        part: Packed files: as published where they are split, the test part is ours for textures
            (every third of a class) and, by position, for faces. A folder with a folder ``train``
            in it has the parts ``train``, ``val`` and ``test``; with one of the latter two that
            one is the test part, and a tenth of ``train`` is held out to validate. All else, the
            grid of sprites included, is cut at random, always the same, into eight tenths, one
            and one.
        channels: 1 for sprites without color, as one gray channel; 3 for everything.

    Raises:
        ConfigError: An unknown name or part, a size that cannot be, or one channel of RGB.
        DataError: A folder or file is missing or not what its name promises, or a folder holds
            too few images; the message names it. An image that does not decode is named where it
            is indexed.

    Example:
        >>> sprites = image_set(Sprites(32), part="test")
        >>> len(sprites), sprites[torch.tensor([5, 0])].shape
        (73728, torch.Size([2, 3, 32, 32]))
    """
    if isinstance(source, Sprites) or source == "sprites":
        sprites = _sprites(source, image_size)
        index = random_parts(len(sprites), parts=get_args(Part), title=sprites.title)[part]
        drawn = SpriteImages(sprites, index, channels=channels)
        return ImageSet("sprites", sprites.title, part, drawn)
    if channels != 3:
        raise ConfigError(
            f"image_set: channels={channels} is for sprites without color only; the images of "
            f"{source} have 3"
        )
    if source == "image-folder":
        if image_size is None:
            raise ConfigError("image_set: a folder may hold images of any size; give image_size")
        title, images = lazy_folder(data, image_size=image_size, part=part)
        return ImageSet(source, title, part, images)
    if source not in PACKED:
        raise ConfigError(
            f"image_set: got {source!r}, need one of {', '.join(get_args(ImageSetName))}"
        )
    packed = PACKED[source]
    size = packed.side if image_size is None else image_size
    images = lazy_packed(packed, data=data, image_size=size, part=part)
    return ImageSet(packed.name, packed.title, part, images)


def _sprites(source: Literal["sprites"] | Sprites, size: int | None) -> Sprites:
    if not isinstance(source, Sprites):
        return Sprites() if size is None else Sprites(size)
    if size not in (None, source.image_shape[-1]):
        raise ConfigError(
            f"image_set: image_size={size} does not fit {source!r}; make Sprites({size})"
        )
    return source
