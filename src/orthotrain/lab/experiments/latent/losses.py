"""Adversarial losses, from logits that are large for real images."""

from __future__ import annotations

from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from orthotrain.lab.experiments.latent.config import AdversarialLoss


def discriminator_loss(
    real_logits: Float[Tensor, "*real"],
    fake_logits: Float[Tensor, "*fake"],
    *,
    kind: AdversarialLoss,
) -> Float[Tensor, ""]:
    """What the discriminator minimises: the sum of a mean over real and a mean over fake images.

    ============== =====================================================
    hinge          ``relu(1 - real) + relu(1 + fake)``
    non_saturating ``softplus(-real) + softplus(fake)``
    wasserstein    ``fake - real``, to be used with a gradient penalty
    ============== =====================================================

    Args:
        real_logits: Of real images, any shape that is not empty.
        fake_logits: Of generated ones; need not be as many.
        kind: Which loss.

    Returns:
        A scalar, float32 for half precision.

    Note:
        Differentiable, the hinge but for its corners at 1 and -1.

    Source:
        Hinge: Lim and Ye (2017), arXiv:1705.02894. Non-saturating: Goodfellow et al. (2014),
        arXiv:1406.2661. Wasserstein: Arjovsky, Chintala and Bottou (2017), arXiv:1701.07875.

    Example:
        >>> logits = torch.tensor([0.5, 3.0]), torch.tensor([-2.0, 0.0])
        >>> discriminator_loss(*logits, kind="hinge").item()
        0.75
    """
    real = _in_float32(real_logits)
    fake = _in_float32(fake_logits)
    match kind:
        case "hinge":
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        case "non_saturating":
            return F.softplus(-real).mean() + F.softplus(fake).mean()
        case "wasserstein":
            return fake.mean() - real.mean()
        case _:
            assert_never(kind)


def generator_loss(
    fake_logits: Float[Tensor, "*fake"], *, kind: AdversarialLoss
) -> Float[Tensor, ""]:
    """What the generator minimises: ``softplus(-fake)`` or, for the other two, ``-fake``.

    Args:
        fake_logits: Of generated images, any shape that is not empty.
        kind: As for :func:`discriminator_loss`.

    Returns:
        The mean, a scalar, float32 for half precision.

    Note:
        Differentiable everywhere.

    Source:
        As :func:`discriminator_loss`.
    """
    fake = _in_float32(fake_logits)
    match kind:
        case "non_saturating":
            return F.softplus(-fake).mean()
        case "hinge" | "wasserstein":
            return -fake.mean()
        case _:
            assert_never(kind)


def _in_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
