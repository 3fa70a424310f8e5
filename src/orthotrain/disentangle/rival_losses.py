"""The rivals of NOG and OLR that are losses: Hessian penalty, OroJaR and the VP loss.

All are differentiable in the generator's parameters and draw from the ``generator`` they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from orthotrain._checks import require_count, require_number
from orthotrain._doors import checked
from orthotrain.disentangle.generators import Generate
from orthotrain.disentangle.variation_predictability import moved_coordinate
from orthotrain.errors import ConfigError, ShapeError

# Latents are drawn from N(0, 1): a step of a thousand deviations leaves them.
_LONGEST_STEP = 1e3

#: One tensor, or several activations that are penalised each by itself and summed.
Outputs = Tensor | Sequence[Tensor]


@checked
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
    few directions, and ``v^T H v`` is a central difference. Of all outputs and rows the largest
    counts, as in the published code. The published weight is 1e-3 on sprites.

    Args:
        generate: Latents ``(n, d)`` to one tensor ``(n, ...)``, or to several activations whose
            penalties are summed. Called ``2 * directions`` times, and once more without ``base``,
            in its present mode. It must be a function of the latent alone.
        z: Latents.
        generator: Draws the signs, one direction per row.
        directions: Over which the variance is taken, at least 2.
        step: Of the central difference; its error is of order ``step**2``.
        base: ``generate(z)`` where it is at hand.

    Returns:
        A scalar in the dtype of the outputs.

    Raises:
        ShapeError: ``z`` is not ``(n, d)``, or an output does not have one row per latent.
        ConfigError: ``z`` is not real floating-point, ``directions`` or ``step`` out of range.

    Note:
        In float32 the difference of images of size one carries rounding of about
        ``1e-7 / step**2``.

    Source:
        Peebles et al. (2020), arXiv:2008.10599, equations 4 and 5.

    Example:
        >>> z = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> random = torch.Generator().manual_seed(0)
        >>> float(hessian_penalty(lambda z: z.square(), z, generator=random)) < 1e-20
        True
    """
    name = "hessian_penalty"
    here = _outputs_here(name, generate, z, directions, step, base, order=2)
    seconds: list[list[Tensor]] = []
    for v in _signs(z, directions, generator):
        ahead = _as_list(name, generate(z + step * v), len(z))
        behind = _as_list(name, generate(z - step * v), len(z))
        both = zip(ahead, here, behind, strict=True)
        seconds.append([(a - 2 * x + b) / step**2 for a, x, b in both])
    return _largest_variances(seconds)


@checked
def orojar(
    generate: Callable[[Tensor], Outputs],
    z: Float[Tensor, "n d"],
    *,
    generator: torch.Generator,
    directions: int = 2,
    step: float = 0.1,
    base: Outputs | None = None,
) -> Float[Tensor, ""]:
    r"""Largest variance of ``|J v|^2`` over random signs ``v`` (orthogonal Jacobian, OroJaR).

    With the columns ``J_i`` of the Jacobian, ``var(|J v|^2) = 2 sum_{i != j} (J_i . J_j)^2``:
    zero exactly where the coordinates change the output in orthogonal ways. The variance is the
    unbiased one over a few directions, and ``J v`` is a forward difference. The largest over the
    rows counts, as in the published code. Published weights: 1e-11 on sprites, 1e-6 on faces.

    Args:
        generate: As in ``hessian_penalty``. Called ``directions`` times, and once more without
            ``base``.
        z: Latents.
        generator: Draws the signs, one direction per row.
        directions: Over which the variance is taken, at least 2.
        step: Of the forward difference; its error is of order ``step``.
        base: ``generate(z)`` where it is at hand.

    Returns:
        A scalar in the dtype of the outputs.

    Raises:
        ShapeError, ConfigError: As ``hessian_penalty``.

    Source:
        Wei et al. (2021), arXiv:2108.07668.

    Example:
        >>> columns = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 3.0]], dtype=torch.float64)
        >>> z = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> random = torch.Generator().manual_seed(0)
        >>> float(orojar(lambda z: z @ columns.T, z, generator=random)) < 1e-20
        True
    """
    here = _outputs_here("orojar", generate, z, directions, step, base, order=1)
    lengths: list[list[Tensor]] = []
    for v in _signs(z, directions, generator):
        ahead = _as_list("orojar", generate(z + step * v), len(z))
        slopes = [(a - x) / step for a, x in zip(ahead, here, strict=True)]
        lengths.append([slope.reshape(len(z), -1).square().sum(dim=1) for slope in slopes])
    return _largest_variances(lengths)


@checked
def vp_loss(
    generate: Generate,
    z: Float[Tensor, "n d"],
    *,
    classifier: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    factors: int | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy of telling from ``G(z) - G(z')`` which coordinate of ``z`` was drawn anew.

    Generator and classifier lower it together: give both to one optimizer, or one to each. The
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
        Differentiable in the parameters of ``generate`` and ``classifier``, and in ``z``.

    Source:
        Zhu, Xu and Tao (2020), arXiv:2007.12885, with the difference as the classifier's input.
    """
    _require_latents("vp_loss", z)
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


def _require_latents(function: str, z: Tensor) -> None:
    if z.ndim != 2 or 0 in z.shape:
        raise ShapeError(
            f"{function} needs latents z of shape (n, d) with n, d >= 1, got {tuple(z.shape)}; "
            f"flatten them with z.flatten(1)"
        )


def _outputs_here(  # noqa: PLR0913 - what both penalties are called with
    function: str,
    generate: Callable[[Tensor], Outputs],
    z: Tensor,
    directions: int,
    step: float,
    base: Outputs | None,
    *,
    order: int,
) -> list[Tensor]:
    """Outputs at the latents themselves; raises unless latents and settings make sense."""
    _require_latents(function, z)
    require_count(function, "directions", directions, least=2)
    # A difference of this order over step**order is rounding alone below the first bound.
    least = torch.finfo(z.dtype).eps ** (1 / order)
    require_number(function, f"step (for {z.dtype})", step, least=least, most=_LONGEST_STEP)
    return _as_list(function, generate(z) if base is None else base, len(z))


def _signs(
    z: Float[Tensor, "n d"], directions: int, generator: torch.Generator
) -> Float[Tensor, "k n d"]:
    """Directions of entries -1 and 1, one for each row, where and as the latents are."""
    shape = (directions, *z.shape)
    bits = torch.randint(2, shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(z)


def _as_list(function: str, out: Outputs, n: int) -> list[Tensor]:
    """The outputs of a generator as a list; raises unless each has one row per latent."""
    outputs = [out] if isinstance(out, Tensor) else list(out)
    for x in outputs:
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != n or x.numel() == 0:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"{function} needs outputs of shape (n, ...) with n = {n}, got {got} from "
                f"generate; return one tensor, or a list of activations"
            )
    if not outputs:
        raise ShapeError(f"{function} needs outputs of generate, got an empty list; return one")
    return outputs


def _largest_variances(by_direction: Sequence[Sequence[Tensor]]) -> Tensor:
    """Sum over the outputs of their largest variance over the directions."""
    by_output = zip(*by_direction, strict=True)
    return torch.stack([torch.stack(output).var(dim=0).max() for output in by_output]).sum()
