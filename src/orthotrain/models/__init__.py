"""Small models for the recipes, and generators for latent disentanglement."""

from typing import TYPE_CHECKING

from orthotrain._names import lazy_names

if TYPE_CHECKING:
    from orthotrain.models.autoformer import Autoformer
    from orthotrain.models.average import ema_of
    from orthotrain.models.eigengan import EigenDiscriminator, EigenGenerator
    from orthotrain.models.gpt import GPT
    from orthotrain.models.linear_gan import LinearGenerator, QuadraticCritic
    from orthotrain.models.mini_vit import MiniViT
    from orthotrain.models.resnet import ResNet
    from orthotrain.models.simple_gan import SimpleDiscriminator, SimpleGenerator

__all__ = [
    "GPT",
    "Autoformer",
    "EigenDiscriminator",
    "EigenGenerator",
    "LinearGenerator",
    "MiniViT",
    "QuadraticCritic",
    "ResNet",
    "SimpleDiscriminator",
    "SimpleGenerator",
    "ema_of",
]
_HOME = {
    "GPT": "gpt",
    "Autoformer": "autoformer",
    "EigenDiscriminator": "eigengan",
    "EigenGenerator": "eigengan",
    "LinearGenerator": "linear_gan",
    "MiniViT": "mini_vit",
    "QuadraticCritic": "linear_gan",
    "ResNet": "resnet",
    "SimpleDiscriminator": "simple_gan",
    "SimpleGenerator": "simple_gan",
    "ema_of": "average",
}

if not TYPE_CHECKING:  # type checkers know which names there are
    __getattr__ = lazy_names(__name__, _HOME)
