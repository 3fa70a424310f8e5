"""Embedded and local image data, split once and for all by an explicit generator."""

from typing import TYPE_CHECKING

from orthotrain._names import missing_name
from orthotrain.data.image_sets import ImageSet, image_set
from orthotrain.data.moments import SpriteMoments, sprite_moments
from orthotrain.data.sprites import Sprites

__all__ = ["ImageSet", "SpriteMoments", "Sprites", "image_set", "sprite_moments"]

if not TYPE_CHECKING:  # type checkers know that the name is missing
    __getattr__ = missing_name(__name__)
