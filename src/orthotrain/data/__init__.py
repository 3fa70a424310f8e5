"""Embedded and local image data, split once and for all by an explicit generator."""

from orthotrain.data.sprites import Sprites

__all__ = ["Sprites"]
