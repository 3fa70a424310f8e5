"""Embedded and local image data, split once and for all by an explicit generator."""

from importlib import import_module
from typing import TYPE_CHECKING

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


def __getattr__(name: str) -> object:
    """Load a data set on first use: who reads one loads no other."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
