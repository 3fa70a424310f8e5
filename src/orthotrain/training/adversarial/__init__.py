"""What a generative adversarial training adds to a loop: losses, penalties, augmentation."""

from orthotrain.training.adversarial.augment import (
    Augmentation,
    AugmentPolicy,
    draw_augmentation,
)
from orthotrain.training.adversarial.losses import (
    AdversarialLoss,
    discriminator_loss,
    generator_loss,
)
from orthotrain.training.adversarial.penalties import (
    gradient_penalty,
    lazy_weight,
    r1_penalty,
)

__all__ = [
    "AdversarialLoss",
    "AugmentPolicy",
    "Augmentation",
    "discriminator_loss",
    "draw_augmentation",
    "generator_loss",
    "gradient_penalty",
    "lazy_weight",
    "r1_penalty",
]
