"""Small models for the recipes, and generators for latent disentanglement."""

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
