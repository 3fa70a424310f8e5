"""Embedded and local image data, split once and for all by an explicit generator."""

from typing import TYPE_CHECKING

from orthotrain._names import lazy_names

if TYPE_CHECKING:
    from orthotrain.data.image_sets import ImageSet, image_set
    from orthotrain.data.moments import SpriteMoments, sprite_moments
    from orthotrain.data.sprites import Sprites

__all__ = ["ImageSet", "SpriteMoments", "Sprites", "image_set", "sprite_moments"]
_HOME = {
    "ImageSet": "image_sets",
    "SpriteMoments": "moments",
    "Sprites": "sprites",
    "image_set": "image_sets",
    "sprite_moments": "moments",
}

if not TYPE_CHECKING:  # type checkers know which names there are
    __getattr__ = lazy_names(__name__, _HOME)
