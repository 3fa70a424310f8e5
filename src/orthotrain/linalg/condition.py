"""Condition numbers: one, or the four readings that are often taken for one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from orthotrain._checks import require_share
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ConvergenceError, NotPositiveDefiniteError
from orthotrain.linalg._gram_in_parts import LEAST_SHARE, fits, gram_in_parts, tall
from orthotrain.linalg._inputs import (
    power_of_two_scale,
    require_matrix,
    result_dtype,
)
from orthotrain.linalg._symmetric import require_square, rounding, symmetric_part
from orthotrain.linalg.decompose import LinAlgError, singular_values
from orthotrain.linalg.rank import numerical_rank, rounding_rtol

ConditionMethod = Literal["svd", "gram", "auto"]


@checked
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
        ``torch.vmap`` and ``torch.func`` work. Under ``vmap`` nobody sees NaN before the driver,
        so it is a ConvergenceError there.

    Example:
        >>> a = torch.diag(torch.tensor([8.0, 2.0, 0.0]))
        >>> condition_number(a).item(), condition_number(a, rtol=1e-6).item()
        (inf, 4.0)
    """
    require_matrix("condition_number", a)
    s = singular_values(a)
    rank = numerical_rank(s, rtol=0.0 if rtol is None else rtol)
    return _quotient(s[..., 0], _last_counted(s, rank)).to(result_dtype(a.dtype))


@dataclass(frozen=True)
class ConditionReadings:
    """Rank, and condition read in four ways, per matrix of a batch; ``(*batch,)`` in float64.

    Attributes:
        rank: How many values count, by ``numerical_rank`` at ``rtol``.
        on_range: Largest value over the smallest that counts; infinite for a zero matrix.
        with_ridge: ``(largest + ridge) / (smallest + ridge)`` of a symmetric matrix, with
            eigenvalues below zero taken for zero; infinite without a ridge where the smallest is
            zero. None for singular values.
        naive_float32: Largest over smallest absolute value as float32 finds them. For a
            matrix that is singular up to rounding it measures rounding only. NaN: not read.
        naive_float64: The same in float64.
        largest: Largest eigenvalue or singular value.
        norm: Frobenius norm.
        ridge: What was added to every eigenvalue.
        rtol: The tolerance of ``rank`` and ``on_range``.
        method: What was done: ``"svd"`` (of a symmetric matrix its eigenvalues) or ``"gram"``.
    """

    rank: Int64[Tensor, "*batch"]
    on_range: Float[Tensor, "*batch"]
    with_ridge: Float[Tensor, "*batch"] | None
    naive_float32: Float[Tensor, "*batch"]
    naive_float64: Float[Tensor, "*batch"]
    largest: Float[Tensor, "*batch"]
    norm: Float[Tensor, "*batch"]
    ridge: Float[Tensor, "*batch"] | None
    rtol: float
    method: Literal["svd", "gram"] = "svd"


@checked
@torch.no_grad()
def condition_readings(
    a: Float[Tensor, "*batch m n"],
    *,
    rtol: float | None = None,
    symmetric: bool = False,
    ridge: float = 0.0,
    relative_ridge: float = 0.0,
    method: ConditionMethod = "svd",
) -> ConditionReadings:
    """Rank of a matrix, and its condition number read in four ways.

    A covariance of 27 inputs seen through 64 channels has rank 27 at most. Its 37 other
    eigenvalues are rounding, and so is a condition number that divides by them. One reading leaves
    them out, one adds the ridge first, and two divide by them, in float32 and in float64.

    Args:
        a: ``(*batch, m, n)`` with ``m, n >= 1``. Batch entries are independent.
        rtol: In ``[0, 1)``. Only values of at least ``rtol`` times the largest count for rank
            and range. Defaults to ``max(m, n) * eps`` of the dtype of ``a``, at most .5.
        symmetric: Read eigenvalues of a symmetric positive semi-definite matrix instead of
            singular values.
        ridge: Added to every eigenvalue, as in ``spd_sqrt``; symmetric matrices only.
        relative_ridge: This times the mean eigenvalue is added, too.
        method: ``"svd"`` decomposes twice, in float64 and in float32. ``"gram"`` takes singular
            values from the float64 Gram matrix, some rows of ``a`` at a time, in a seventh to a
            third of the time (``benchmarks/watching.py``). Each value is then known to
            ``1.7e-15 (s_0 / s_i)^2`` of itself, .2 % at ``1e-6`` of the largest. So ``rank`` and
            ``on_range`` are as good as with ``"svd"``; where values lie below ``1e-6`` and
            ``rtol`` does, too, ``"svd"`` is taken. ``naive_float32`` is NaN, as nothing is
            decomposed in float32, and so is ``naive_float64`` where the smallest value is below
            ``1e-6`` of the largest. ``"auto"`` is ``"gram"`` for input below float64 with a
            smaller side of 128 and more.

    Returns:
        All readings, on the device of ``a``, without gradient.

    Raises:
        ShapeError: ``a.ndim < 2``, ``m`` or ``n`` is zero, or ``symmetric`` and not square.
        ConfigError: ``a`` is not real floating-point, or ``symmetric`` and not symmetric to
            rounding; ``rtol`` outside ``[0, 1)``; a ridge that is negative, not finite, or given
            for singular values.
        NonFiniteError: ``a`` holds NaN or infinity.
        NotPositiveDefiniteError: ``symmetric`` and an eigenvalue below zero beyond rounding.
        ConvergenceError: The driver did not converge.

    Note:
        Not differentiable: it is a measurement.

    Example:
        >>> a = torch.diag(torch.tensor([8.0, 2.0, 0.0]))
        >>> r = condition_readings(a, symmetric=True, ridge=0.5)
        >>> r.rank.item(), r.on_range.item(), r.with_ridge.item(), r.naive_float64.item()
        (2, 4.0, 17.0, inf)
    """
    name = "condition_readings"
    _require_ridge(name, ridge, relative_ridge, symmetric=symmetric)
    if symmetric:
        require_square(name, a)
        wide = symmetric_part(name, a.to(torch.float64), dtype=a.dtype)
    else:
        require_matrix(name, a)
    if rtol is None:
        rtol = rounding_rtol(a)
    require_share(name, "rtol", rtol, zero=True)
    if _by_gram(a, method, symmetric=symmetric) and (found := _gram_readings(a, rtol)):
        return found
    if not symmetric:
        wide = a.to(torch.float64)
    # A power of two changes no digit, and keeps large and small entries within float32.
    scale = power_of_two_scale(wide)
    unit, scale = wide / scale, scale[..., 0, 0]
    values = _signed_values(unit, symmetric=symmetric)
    narrow = _signed_values(unit.to(torch.float32), symmetric=symmetric)
    if symmetric:
        _require_semidefinite(a, values)
    s = values.clamp(min=0)
    rank = numerical_rank(s, rtol=rtol)
    largest, smallest = s[..., 0] * scale, s[..., -1] * scale
    added = ridge + relative_ridge * s.mean(dim=-1) * scale if symmetric else None
    return ConditionReadings(
        rank=rank,
        on_range=_quotient(s[..., 0], _last_counted(s, rank)),
        with_ridge=None if added is None else _quotient(largest + added, smallest + added),
        naive_float32=_naive(narrow),
        naive_float64=_naive(values),
        largest=largest,
        norm=torch.linalg.matrix_norm(unit) * scale,
        ridge=added,
        rtol=rtol,
    )


def _by_gram(a: Tensor, method: ConditionMethod, *, symmetric: bool) -> bool:
    match method:
        case "svd":
            return False
        case "auto":
            return not symmetric and fits(a)
        case "gram":
            if symmetric:
                raise ConfigError(
                    "condition_readings takes eigenvalues with symmetric=True, got method='gram'; "
                    "leave method out, or read singular values"
                )
            return True
        case _:
            raise ConfigError(
                f"condition_readings needs method to be one of svd, gram, auto, got {method!r}"
            )


def _gram_readings(a: Tensor, rtol: float) -> ConditionReadings | None:
    """Readings from Gram matrices, one after another; None where these cannot tell them."""
    spectra, norms, scales = [], [], []
    for each in tall(a).reshape(-1, *tall(a).shape[-2:]):
        # Squares of lesser dtypes fit float64 as they are.
        scale = power_of_two_scale(each) if a.dtype == torch.float64 else None
        gram = gram_in_parts(each, scale)
        try:
            spectra.append(torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0).sqrt())
        except LinAlgError:
            return None
        norms.append(gram.diagonal().sum().sqrt())
        scales.append(torch.ones_like(norms[-1]) if scale is None else scale.flatten()[0])
    if not spectra:
        return None
    batch = a.shape[:-2]
    s, norm, unit = torch.stack(spectra), torch.stack(norms), torch.stack(scales)
    seen = s[..., -1] > LEAST_SHARE * s[..., 0]
    if rtol < LEAST_SHARE and not bool(seen.all()):
        return None
    rank = numerical_rank(s, rtol=rtol)
    naive = torch.where(seen, _quotient(s[..., 0], s[..., -1]), torch.nan)
    return ConditionReadings(
        rank=rank.reshape(batch),
        on_range=_quotient(s[..., 0], _last_counted(s, rank)).reshape(batch),
        with_ridge=None,
        naive_float32=torch.full_like(naive, torch.nan).reshape(batch),
        naive_float64=naive.reshape(batch),
        largest=(s[..., 0] * unit).reshape(batch),
        norm=(norm * unit).reshape(batch),
        ridge=None,
        rtol=rtol,
        method="gram",
    )


def _signed_values(a: Tensor, *, symmetric: bool) -> Tensor:
    """Eigenvalues or singular values from large to small, in the dtype of ``a``."""
    try:
        values: Tensor = torch.linalg.eigvalsh(a) if symmetric else torch.linalg.svdvals(a)
    except LinAlgError as error:
        raise ConvergenceError(
            f"condition_readings of shape {tuple(a.shape)} in {a.dtype} did not converge; look "
            f"at the entries of the matrix, or scale its rows and columns"
        ) from error
    return values.flip(-1) if symmetric else values


def _naive(values: Tensor) -> Tensor:
    sizes = values.abs()
    return _quotient(sizes.amax(dim=-1), sizes.amin(dim=-1)).to(torch.float64)


def _last_counted(s: Tensor, rank: Tensor) -> Tensor:
    """The smallest of the leading ``rank`` values; of no value the first."""
    return s.gather(-1, (rank - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)


def _quotient(largest: Tensor, smallest: Tensor) -> Tensor:
    """``largest / smallest``, infinite where the smallest is zero."""
    regular = smallest > 0
    # The inner choice keeps 0 / 0 out of the derivative.
    return torch.where(regular, largest / torch.where(regular, smallest, 1.0), torch.inf)


def _require_ridge(function: str, ridge: float, relative_ridge: float, *, symmetric: bool) -> None:
    for name, value in (("ridge", ridge), ("relative_ridge", relative_ridge)):
        if not 0 <= value < math.inf:
            raise ConfigError(
                f"{function} needs a finite {name} >= 0, got {value}; it is what the layer adds "
                f"to the eigenvalues, and 0 where it adds nothing"
            )
        if value and not symmetric:
            raise ConfigError(
                f"{function} takes a ridge only with symmetric=True, got {name}={value}; a ridge "
                f"is added to eigenvalues, and without symmetric=True singular values are read"
            )


def _require_semidefinite(a: Tensor, values: Tensor) -> None:
    """Raise where the smallest of the descending ``values`` is below zero beyond rounding."""
    noise = rounding(a.dtype) * math.sqrt(a.shape[-1])
    bad = -values[..., -1] > noise * values.abs().amax(dim=-1)
    if bool(bad.any()):
        raise NotPositiveDefiniteError(
            f"condition_readings needs a positive semi-definite matrix with symmetric=True, got "
            f"{int(bad.sum())} of shape {tuple(a.shape)} with an eigenvalue below zero beyond "
            f"rounding; leave symmetric out to read singular values"
        )
