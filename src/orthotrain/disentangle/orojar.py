"""OroJaR: a generator whose Jacobian has orthogonal columns, one for each latent coordinate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.disentangle._directions import Outputs, as_list, rademacher, require_penalty


def orojar(
    generate: Callable[[Tensor], Outputs],
    z: Float[Tensor, "n d"],
    *,
    generator: torch.Generator,
    directions: int = 2,
    step: float = 0.1,
    base: Outputs | None = None,
) -> Float[Tensor, ""]:
    r"""Largest variance of ``|J v|^2`` over random signs ``v`` (orthogonal Jacobian penalty).

    With the columns ``J_i`` of the Jacobian, ``var(|J v|^2) = 2 sum_{i != j} (J_i . J_j)^2``:
    zero exactly where the coordinates change the output in orthogonal ways. The variance is the
    unbiased one over a few directions, ``J v`` a forward difference, and the largest over the rows
    counts, as in the published code. Published weights: 1e-11 on sprites, 1e-6 on faces.

    Args:
        generate: Latents ``(n, d)`` to one tensor ``(n, ...)``, or to several activations whose
            penalties are summed. Called ``directions`` times, and once more without ``base``, in
            its present mode; it must be a function of the latent alone.
        z: Latents.
        generator: Draws the signs, one direction a row.
        directions: Over which the variance is taken, at least 2.
        step: Of the forward difference; its error is of order ``step``.
        base: ``generate(z)`` where it is at hand.

    Returns:
        A scalar in the dtype of the outputs.

    Raises:
        ShapeError: ``z`` is not ``(n, d)``, or an output has not a row for each.
        ConfigError: ``z`` is not real floating-point, ``directions`` or ``step`` out of range.

    Note:
        Differentiable in the generator's parameters.

    Source:
        Wei et al. (2021), arXiv:2108.07668.

    Example:
        >>> columns = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 3.0]], dtype=torch.float64)
        >>> z = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> random = torch.Generator().manual_seed(0)
        >>> float(orojar(lambda z: z @ columns.T, z, generator=random)) < 1e-20
        True
    """
    require_penalty("orojar", z, directions, step)
    n = len(z)
    here = as_list("orojar", generate(z) if base is None else base, n)
    lengths: list[list[Tensor]] = []
    for v in rademacher(z, directions, generator):
        ahead = as_list("orojar", generate(z + step * v), n)
        lengths.append(
            [
                ((a - x) / step).reshape(n, -1).square().sum(dim=1)
                for a, x in zip(ahead, here, strict=True)
            ]
        )
    return torch.stack(
        [torch.stack(output).var(dim=0).max() for output in zip(*lengths, strict=True)]
    ).sum()
