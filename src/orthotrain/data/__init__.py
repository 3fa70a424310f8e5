"""Embedded and local image data, split once and for all by an explicit generator."""

from orthotrain.data.image_sets import ImageSet, image_set
from orthotrain.data.moments import SpriteMoments, sprite_moments
from orthotrain.data.sprites import Sprites

__all__ = ["ImageSet", "SpriteMoments", "Sprites", "image_set", "sprite_moments"]
