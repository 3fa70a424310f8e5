"""The factors ``1 / (l_i - l_j)`` of the derivative of eigenvectors, exact or kept finite.

For ``l_i > l_j`` this is ``(1 / l_i) / (1 - r)`` with ``r = l_j / l_i``, and approximations replace
``1 / (1 - r)``. All are antisymmetric: of two equal eigenvalues the first counts as the larger.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from orthotrain._checks import known
from orthotrain.errors import NumericalWarning

SpectralGradient = Literal["exact", "taylor", "pade", "truncated", "top_n", "power_iteration"]

# These are made for eigenvalues that are not negative.
NONNEGATIVE = ("taylor", "pade", "top_n", "power_iteration")

# As published: powers up to the hundredth; twenty terms; at most 1e10 in absolute value.
_TAYLOR_TERMS = 101
_POWER_ITERATION_TERMS = 20
_LARGEST_FACTOR = 1e10
# Eigenvalues closer than this many eps of the largest are a tie for the exact gradient.
_TIE = 4


def gap_factors(
    function: str, values: Tensor, gradient: SpectralGradient, *, drop_last: int, squared: bool
) -> Tensor:
    """``K_ij = 1 / (l_i - l_j)`` with a zero diagonal, or what stands for it.

    Args:
        function: Name for the warning.
        values: ``(*batch, k)`` from large to small.
        gradient: Which factors.
        drop_last: How many of the smallest ``"top_n"`` takes for zero.
        squared: Whether ``l`` are the squares of ``values``.

    Returns:
        ``(*batch, k, k)``, antisymmetric and finite.

    Warns:
        NumericalWarning: ``"exact"`` met a tie, between whose vectors it gives nothing.
    """
    if gradient == "top_n":
        values = torch.where(_last(values, drop_last), 0.0, values)
    pairs = _Pairs(values, squared=squared)
    match gradient:
        case "exact":
            upper = _exact(function, pairs, values)
        case "taylor":
            upper = _geometric(pairs, _TAYLOR_TERMS)
        case "power_iteration":
            upper = _geometric(pairs, _POWER_ITERATION_TERMS)
        case "pade":
            # The [50/50] Pade approximant of 1 / (1 - r) is the function itself; what makes it
            # finite is the resolution of r.
            gap = (pairs.gap / pairs.first).clamp(min=torch.finfo(values.dtype).eps)
            upper = 1 / (pairs.first * gap)
        case "truncated":
            upper = (1 / pairs.gap).clamp(max=_LARGEST_FACTOR)
        case "top_n":
            dropped = _last(values, drop_last)
            both = dropped.unsqueeze(-1) & dropped.unsqueeze(-2)
            upper = torch.where(both, 0.0, (1 / pairs.gap).clamp(max=_LARGEST_FACTOR))
        case _:
            assert_never(gradient)
    upper = torch.where(torch.isfinite(upper), upper, 0.0).triu(1)
    return upper - upper.mT


class _Pairs:
    """``l_i`` and ``l_i - l_j`` for the pairs above the diagonal; elsewhere 1."""

    def __init__(self, values: Tensor, *, squared: bool) -> None:
        size = values.shape[-1]
        above = torch.ones(size, size, dtype=torch.bool, device=values.device).triu(1)
        first, second = values.unsqueeze(-1), values.unsqueeze(-2)
        self.difference = torch.where(above, first - second, 1.0)
        # As a product, a difference of squares keeps its digits.
        gap = (first - second) * (first + second) if squared else first - second
        self.gap = torch.where(above, gap, 1.0)
        self.first = torch.where(above, first * first if squared else first, 1.0)


def _last(values: Tensor, count: int) -> Tensor:
    """``(k,)``, true for the last ``count``."""
    size = values.shape[-1]
    return torch.arange(size, device=values.device) >= size - count


def _exact(function: str, pairs: _Pairs, values: Tensor) -> Tensor:
    size = values.detach().abs().amax(dim=-1)[..., None, None]
    tied = pairs.difference <= _TIE * torch.finfo(values.dtype).eps * size
    tied = tied.triu(1)
    if known(tied.any()):
        warnings.warn(
            f"{function}: {int(tied.sum())} pairs of values are equal up to rounding, and their "
            f"vectors have no derivative there; it was set to zero between them. For a matrix root "
            f"take spd_sqrt or spd_inv_sqrt, which have a derivative at ties",
            NumericalWarning,
            stacklevel=2,
        )
    return torch.where(tied, 0.0, 1 / torch.where(tied, 1.0, pairs.gap))


def _geometric(pairs: _Pairs, terms: int) -> Tensor:
    """``(1 / first) * sum_{k < terms} r^k`` by its closed form, to rounding also near a tie."""
    gap = pairs.gap / pairs.first
    total = -torch.expm1(terms * torch.log1p(-gap)) / gap
    return torch.where(gap > 0, total, float(terms)) / pairs.first


class FirstDerivative(torch.autograd.Function):
    """Ties an approximate gradient to what it depends on, so that a second one is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: str, gradient: Tensor, *needs: Tensor | None) -> Tensor:
        """The gradient as it is."""
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the name for the message."""
        ctx.function = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Refuse."""
        raise NotImplementedError(
            f"{ctx.function} has a second derivative for gradient='exact' only, and this call "
            f"chose another gradient; drop create_graph, or take 'exact'"
        )

    jvp = backward
