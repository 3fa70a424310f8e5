"""Penalties on the discriminator's slope at images, and when to apply them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

#: Images ``(n, ...)`` to one logit an image; an augmentation may be part of it.
Critic = Callable[[Tensor], Tensor]


def r1_penalty(critic: Critic, real: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """Mean of ``|d critic / d image|^2`` at real images.

    Multiply it by ``gamma / 2`` for the penalty as it was published; the code around EigenGAN
    multiplies it by its weight, 10, as it is. For an augmented discriminator give
    ``lambda x: discriminator(augmentation(x))``: the slope is taken at the image itself.

    Args:
        critic: Images to one logit each. Images must not meet in it (no batch norm).
        real: Real images; their graph, if any, is left alone.

    Returns:
        A scalar, float32 for half precision, with a graph to the critic's parameters; under
        ``torch.no_grad`` the value alone.

    Note:
        Needs a critic that can be differentiated twice.

    Source:
        Mescheder, Geiger and Nowozin (2018), arXiv:1801.04406.
    """
    return _slopes(critic, real).square().sum(dim=1).mean()


def gradient_penalty(
    critic: Critic,
    real: Float[Tensor, "n ..."],
    fake: Float[Tensor, "n ..."],
    *,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Mean of ``(|d critic / d image| - 1)^2`` at points between real and generated images.

    The points are ``t real + (1 - t) fake``, with one ``t`` a pair, uniform in [0, 1).

    Args:
        critic: As in :func:`r1_penalty`.
        real: Real images.
        fake: Generated ones of the same shape; no gradient reaches what generated them.
        generator: Source of ``t``, drawn in float32 on its own device.

    Returns:
        As :func:`r1_penalty`.

    Note:
        Where the slope is zero the norm has no derivative, and zero is taken for it.

    Source:
        Gulrajani et al. (2017), arXiv:1704.00028.
    """
    t = torch.rand(len(real), generator=generator, device=generator.device).to(real)
    t = t.view(-1, *[1] * (real.ndim - 1))
    between = fake.detach() + t * (real.detach() - fake.detach())
    slopes = _slopes(critic, between)
    norms: Tensor = torch.linalg.vector_norm(slopes, dim=1)
    return (norms - 1).square().mean()


def lazy_weight(step: int, *, every: int, weight: float) -> float:
    """Weight of a penalty at a step when it is applied at every ``every``-th step only.

    ``every * weight`` at steps 0, ``every``, 2 ``every`` and so on, and 0 between, where the
    penalty need not be computed: the sum over steps is that of ``weight`` at each step. Add the
    penalty to the loss of the same optimizer step: in a step of its own, Adam would take most of
    the factor back.

    Args:
        step: Steps done so far, from 0.
        every: At least 1.
        weight: At every step, were it not lazy; at least 0 and finite.

    Source:
        Karras et al. (2020), arXiv:1912.04958, appendix B.

    Example:
        >>> [lazy_weight(step, every=3, weight=0.5) for step in range(5)]
        [1.5, 0.0, 0.0, 1.5, 0.0]
    """
    return every * weight if step % every == 0 else 0.0


def _slopes(critic: Critic, images: Tensor) -> Tensor:
    """Derivative of each image's logit at that image, ``(n, numbers)``, with a graph."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(critic(x).sum(), x, create_graph=graph)
    return slopes.flatten(1).to(torch.promote_types(slopes.dtype, torch.float32))
