"""The VP loss: a generator helps a classifier to see which latent coordinate moved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from orthotrain.disentangle._directions import require_latents
from orthotrain.disentangle._generator import Generate
from orthotrain.disentangle.variation_predictability import moved_coordinate
from orthotrain.errors import ConfigError, ShapeError


def vp_loss(
    generate: Generate,
    z: Float[Tensor, "n d"],
    *,
    classifier: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    factors: int | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy of telling from ``G(z) - G(z')`` which coordinate of ``z`` was drawn anew.

    Generator and classifier lower it together: give both to the optimizer, or one to each. The
    published weight is 0.1.

    Args:
        generate: Latents ``(n, d)`` to images ``(n, c, h, w)``, called twice in its present mode.
        z: Latents, ``n >= 1``.
        classifier: Differences of images to logits ``(n, factors)``, for instance a
            ``VariationClassifier``.
        generator: Draws which coordinate moves in each row, and its new value from N(0, 1).
        factors: How many coordinates, from the first, may move; None is all. At least two.

    Returns:
        A scalar, ``log(factors)`` where the classifier only guesses.

    Raises:
        ShapeError: ``z`` is not ``(n, d)``, or the logits are not ``(n, factors)``.
        ConfigError: ``z`` is not real floating-point, or ``factors`` is outside ``[2, d]``.

    Note:
        Differentiable in the parameters of ``generate`` and ``classifier`` and in ``z``.

    Source:
        Zhu, Xu and Tao (2020), arXiv:2007.12885, with the difference as the classifier's input.
    """
    require_latents("vp_loss", z)
    factors = z.shape[1] if factors is None else factors
    if isinstance(factors, bool) or not 2 <= factors <= z.shape[1]:
        raise ConfigError(
            f"vp_loss needs factors between 2 and {z.shape[1]}, got {factors}; one coordinate "
            f"leaves nothing to tell"
        )
    dims = torch.randint(factors, (len(z),), generator=generator, device=generator.device)
    difference = generate(z) - generate(moved_coordinate(z, dims, generator))
    logits = classifier(difference)
    if logits.shape != (len(z), factors):
        raise ShapeError(
            f"vp_loss needs logits of shape {(len(z), factors)}, got {tuple(logits.shape)} from "
            f"classifier; build it with factors={factors}"
        )
    return F.cross_entropy(logits, dims.to(logits.device))
