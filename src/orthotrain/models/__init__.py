"""Small models for the recipes, and generators for latent disentanglement."""

from typing import TYPE_CHECKING

from orthotrain._names import missing_name
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

if not TYPE_CHECKING:  # type checkers know that the name is missing
    __getattr__ = missing_name(__name__)
