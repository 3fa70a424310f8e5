"""Hessian penalty: a generator whose Hessian in the latent has nothing off its diagonal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.disentangle._directions import Outputs, as_list, rademacher, require_penalty


def hessian_penalty(
    generate: Callable[[Tensor], Outputs],
    z: Float[Tensor, "n d"],
    *,
    generator: torch.Generator,
    directions: int = 2,
    step: float = 0.1,
    base: Outputs | None = None,
) -> Float[Tensor, ""]:
    r"""Largest variance of a second directional derivative over random signs.

    For one output with Hessian ``H`` and signs ``v``, ``var(v^T H v) = 2 sum_{i != j} H_ij^2``:
    zero exactly where every coordinate acts by itself. The variance is the unbiased one over a
    few directions, ``v^T H v`` a central difference, and of all outputs and rows the largest
    counts, as in the published code. The published weight is 1e-3 on sprites.

    Args:
        generate: Latents ``(n, d)`` to one tensor ``(n, ...)``, or to several activations whose
            penalties are summed. Called ``2 * directions`` times, and once more without ``base``,
            in its present mode; it must be a function of the latent alone.
        z: Latents.
        generator: Draws the signs, one direction a row.
        directions: Over which the variance is taken, at least 2.
        step: Of the central difference; its error is of order ``step**2``.
        base: ``generate(z)`` where it is at hand.

    Returns:
        A scalar in the dtype of the outputs.

    Raises:
        ShapeError: ``z`` is not ``(n, d)``, or an output has not a row for each.
        ConfigError: ``z`` is not real floating-point, ``directions`` or ``step`` out of range.

    Note:
        Differentiable in the generator's parameters. In float32 the difference of images of size
        one carries rounding of about ``1e-7 / step**2``.

    Source:
        Peebles et al. (2020), arXiv:2008.10599, equations 4 and 5.

    Example:
        >>> z = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> random = torch.Generator().manual_seed(0)
        >>> float(hessian_penalty(lambda z: z.square(), z, generator=random)) < 1e-20
        True
    """
    require_penalty("hessian_penalty", z, directions, step)
    n = len(z)
    here = as_list("hessian_penalty", generate(z) if base is None else base, n)
    seconds: list[list[Tensor]] = []
    for v in rademacher(z, directions, generator):
        ahead = as_list("hessian_penalty", generate(z + step * v), n)
        behind = as_list("hessian_penalty", generate(z - step * v), n)
        seconds.append(
            [(a - 2 * x + b) / step**2 for a, x, b in zip(ahead, here, behind, strict=True)]
        )
    return torch.stack(
        [torch.stack(output).var(dim=0).max() for output in zip(*seconds, strict=True)]
    ).sum()
