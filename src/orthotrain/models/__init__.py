"""Small models for the recipes, and generators for latent disentanglement."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orthotrain.models.average import ema_of
    from orthotrain.models.eigengan import EigenDiscriminator, EigenGenerator
    from orthotrain.models.linear_gan import LinearGenerator, QuadraticCritic
    from orthotrain.models.simple_gan import SimpleDiscriminator, SimpleGenerator

__all__ = [
    "EigenDiscriminator",
    "EigenGenerator",
    "LinearGenerator",
    "QuadraticCritic",
    "SimpleDiscriminator",
    "SimpleGenerator",
    "ema_of",
]
_HOME = {
    "EigenDiscriminator": "eigengan",
    "EigenGenerator": "eigengan",
    "LinearGenerator": "linear_gan",
    "QuadraticCritic": "linear_gan",
    "SimpleDiscriminator": "simple_gan",
    "SimpleGenerator": "simple_gan",
    "ema_of": "average",
}


def __getattr__(name: str) -> object:
    """Load a model on first use: who trains one loads no other."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
