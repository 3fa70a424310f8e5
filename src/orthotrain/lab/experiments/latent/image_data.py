"""Real images by configuration: those on disk, and sprites in color or with correlated places."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Final, Literal, get_args

import torch
from jaxtyping import Int64
from torch import Tensor

from orthotrain.data._pixels import pillow
from orthotrain.data.image_sets import ImageSet, image_set
from orthotrain.data.splits import Part, random_parts
from orthotrain.data.sprite_images import SpriteImages
from orthotrain.data.sprites import Sprites
from orthotrain.errors import DataError
from orthotrain.extras import missing_package
from orthotrain.lab.experiments.latent.config import LatentDataConfig
from orthotrain.lab.experiments.latent.sources import ImageSource

# Which correlated sprites there are belongs to the data: every seed of a run sees the same.
_CORRELATED_SEED: Final = 20240807
# As many real images as ``evaluate`` compares at least.
_FEWEST_TEST_IMAGES: Final = 15


def image_source(config: LatentDataConfig, *, device: torch.device) -> ImageSource:
    """The training part of the images that ``config`` names.

    What would stop a training on its way or at its end is said here, before it starts.

    Raises:
        DataError: Local data is missing or damaged, or too few for scores at the end.
        MissingPackageError: Pillow, which writes samples, or scikit-learn, which scores of true
            factors need, is missing.
    """
    pillow("samples")
    if config.name == "sprites" and find_spec("sklearn") is None:
        raise missing_package("train: scores of true factors", "scikit-learn")
    if (count := len(build_images(config, part="test"))) < _FEWEST_TEST_IMAGES:
        place = f" in {config.dir}" if config.dir else ""
        raise DataError(
            f"train: {config.name}{place} has {count} images in its test part, and scores need "
            f"{_FEWEST_TEST_IMAGES}; add images to that part"
        )
    return ImageSource(build_images(config, part="train"), device)


def build_images(config: LatentDataConfig, *, part: Part) -> ImageSet:
    """One part of the images that ``config`` names; sprites without color are gray.

    Raises:
        DataError: Local data is missing or damaged.
    """
    assert config.name != "gaussian"
    if (sprites := build_sprites(config)) is not None:
        channels: Literal[1, 3] = 3 if config.color else 1
        images = image_set(sprites, part=part, channels=channels)
        if part != "train" or not config.correlation:
            return images
        index = _correlated_index(sprites, config.correlation)
        return replace(images, images=SpriteImages(sprites, index, channels=channels))
    return image_set(config.name, data=config.dir, image_size=config.image_size, part=part)


def build_sprites(config: LatentDataConfig) -> Sprites | None:
    """The grid behind the images, where they are sprites."""
    if config.name != "sprites":
        return None
    held = {} if config.orientation else {"orientation": 0}
    return Sprites(config.image_size, color=config.color, held=held)


def _correlated_index(sprites: Sprites, correlation: float) -> Int64[Tensor, " n"]:
    """As many sprites as there are, drawn with their places correlated, if of the training part."""
    count = len(sprites)
    factors = sprites.sample_factors(
        count,
        generator=torch.Generator().manual_seed(_CORRELATED_SEED),
        correlation=("x", "y", correlation),
    )
    index = sprites.index_of(factors)
    trained = torch.zeros(count, dtype=torch.bool)
    trained[random_parts(count, parts=get_args(Part), title=sprites.title)["train"]] = True
    return index[trained[index]]
