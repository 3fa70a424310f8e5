"""Single numbers that sum up a spectrum: condition number and effective rank."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.linalg._inputs import require_matrix, require_spectrum, result_dtype
from orthotrain.linalg.decompose import singular_values, working_dtype
from orthotrain.linalg.rank import numerical_rank


def condition_number(
    a: Float[Tensor, "*batch m n"], *, rtol: float | None = None
) -> Float[Tensor, "*batch"]:
    """Largest singular value over the smallest, or over the smallest that counts.

    Args:
        a: ``(*batch, m, n)`` with ``m, n >= 1``. Batch entries are independent.
        rtol: In ``[0, 1)``. Only ``s_i >= rtol * s_0`` count, by the rule of
            ``numerical_rank``: the condition on the range. Defaults to counting all.

    Returns:
        ``(*batch,)``, at least 1, in float64 for float64 input and else in float32, since
        float16 ends at 65504. Infinite where the smallest singular value is exactly zero, and
        for a zero matrix.

    Raises:
        ShapeError: ``a.ndim < 2``, or ``m`` or ``n`` is zero.
        ConfigError: ``a`` is not real floating-point, or ``rtol`` is outside ``[0, 1)``.
        NonFiniteError: ``a`` holds NaN or infinity.
        ConvergenceError: No driver converged.

    Note:
        A matrix that is singular up to rounding gives a large number without meaning, about
        ``1e16`` in float64: give ``rtol`` where the rank may be deficient. Differentiable where
        the result is finite and the largest and smallest counted singular values are simple.

    Example:
        >>> a = torch.diag(torch.tensor([8.0, 2.0, 0.0]))
        >>> condition_number(a).item(), condition_number(a, rtol=1e-6).item()
        (inf, 4.0)
    """
    require_matrix("condition_number", a)
    s = singular_values(a)
    rank = numerical_rank(s, rtol=0.0 if rtol is None else rtol)
    last = (rank - 1).clamp(min=0).unsqueeze(-1)
    smallest = s.gather(-1, last).squeeze(-1)
    regular = smallest > 0
    # The inner choice keeps 0 / 0 out of the derivative.
    ratio = s[..., 0] / torch.where(regular, smallest, 1.0)
    return torch.where(regular, ratio, torch.inf).to(result_dtype(a.dtype))


def effective_rank(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """Exponential of the entropy of the normalized singular values: a rank without a threshold.

    ``exp(-sum_i p_i log p_i)`` with ``p = s / sum(s)``: ``k`` for a flat spectrum, 1 where one
    direction holds everything, and not changed by scale.

    Args:
        s: ``(*batch, k)`` with ``k >= 1``: non-negative singular values, in any order. Batch
            entries are independent.

    Returns:
        ``(*batch,)`` in [1, k], or 0 for a zero spectrum; in float64 for float64 input and else
        in float32.

    Raises:
        ShapeError: ``s`` has no last dimension, or one of size zero.
        ConfigError: ``s`` is negative or not real floating-point.
        NonFiniteError: ``s`` holds NaN or infinity.

    Note:
        Differentiable where all ``s_i > 0``. At ``s_i = 0`` the one-sided derivative is
        infinite; zero is returned for it.

    Source:
        Roy and Vetterli (2007), "The effective rank: a measure of effective dimensionality",
        EUSIPCO.

    Example:
        >>> effective_rank(torch.tensor([[2.0, 2.0, 2.0], [5.0, 0.0, 0.0]])).tolist()
        [3.0, 1.0]
    """
    require_spectrum("effective_rank", s)
    work = s.to(working_dtype(s))
    # The largest first, so that the sum of large values stays finite.
    largest = work.detach().amax(dim=-1, keepdim=True)
    unit = work / torch.where(largest > 0, largest, 1.0)
    total = unit.sum(dim=-1, keepdim=True)
    p = unit / torch.where(total > 0, total, 1.0)
    positive = p > 0
    entropy = -(p * torch.where(positive, p, 1.0).log()).sum(dim=-1)
    rank = torch.where(positive.any(dim=-1), entropy.exp(), 0.0)
    return rank.to(result_dtype(s.dtype))
