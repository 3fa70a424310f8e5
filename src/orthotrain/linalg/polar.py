"""Polar factor: the nearest matrix with orthonormal columns, with its exact derivatives."""

from __future__ import annotations

from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain._checks import require_count, require_share, require_values
from orthotrain._doors import checked
from orthotrain.errors import ConfigError
from orthotrain.linalg._coefficients import POLAR_EXPRESS_STEPS
from orthotrain.linalg._inputs import (
    plain,
    power_of_two_scale,
    require_matrix_shape,
    result_dtype,
    without_autocast,
)
from orthotrain.linalg._polar_derivative import tall_polar_factor
from orthotrain.linalg._polar_of_one import lean_way_first
from orthotrain.linalg._polar_routes import PolarMethod, Rule, gram_route
from orthotrain.linalg.decompose import widest_dtype, working_dtype

__all__ = ["PolarMethod", "polar_factor"]

# A direction needs 1.7 * log2(s_0 / s_i) steps to grow, and five to settle: enough for 1e8.
_NEWTON_SCHULZ_STEPS = 60


@lean_way_first
@checked
def polar_factor(
    a: Float[Tensor, "*batch m n"],
    *,
    method: PolarMethod = "auto",
    rtol: float | None = None,
    complete: bool = False,
    max_iters: int | None = None,
) -> Float[Tensor, "*batch m n"]:
    r"""Nearest matrix with orthonormal columns (rows, if wide) in Frobenius norm.

    With the thin SVD ``a = U diag(s) Vh`` this is ``U Vh``: directions are kept, every
    singular value becomes one. Nearest-orthogonal gradient (NOG) applies it to a gradient.

    Args:
        a: ``(*batch, m, n)`` with ``m, n >= 1``. Batch entries are independent: one entry
            never changes the value or gradient of another.
        method: How it is computed; each matrix of a batch takes what it needs.

            - ``"svd"`` is exact to rounding at any condition.
            - ``"gram"`` takes the eigenvectors of ``a^T a`` in float64: as they are where
              ``condition**2 * eps64`` is below the rounding of the result (2e4 for float32),
              refined by one more product beyond. Where the small eigenvalues drown in the
              rounding of the large ones, their directions get a Gram matrix of their own. The
              SVD, with a warning, is left for what has null directions all the same, and for
              float64 from 5e3 on.
            - ``"auto"`` is ``"gram"`` without the warning for float32 and less, and ``"svd"``
              for float64. One of up to 2,048 entries takes the SVD, silently, where it would need
              that second Gram matrix. The benchmark
              ``benchmarks/polar.py`` stands behind it on CPU. On an accelerator the choice is the
              same and was not measured: it is the one that is right at any condition; name
              ``"polar_express"`` to have products only.
            - ``"qdwh"`` is a QR decomposition and up to six weighted Halley steps; as exact as
              the SVD. Where a direction may be null the SVD decides, with a warning.
            - ``"newton_schulz"`` and ``"polar_express"`` use matrix products only. They bring
              to one what is large enough for ``max_iters``, and warn with the residual where a
              direction is left between zero and one.
              On CPU that is slower: at 64x27 ``"polar_express"`` took 3.3 to 3.8 times as long as
              torch's SVD, ``"auto"`` about as long. At condition 1e4 its error was .10, against
              2.5e-8 (``benchmarks/results/polar.txt``).
        rtol: In ``[0, 1)``. Directions with ``s_i < rtol * s_0`` are null and stay zero, so a
            zero matrix maps to zero, also with 0. Defaults to the larger of ``4 * eps`` of the
            input's dtype (rounding of a matrix product; half precision counts as exact,
            with the eps of float32) and ``eps * max(m, n)`` of the dtype it is computed in.
            The methods that use products only cannot cut: a null direction that is not zero
            grows from its rounding, by 8e3 in eight steps of Polar Express and by 1.5 per step of
            Newton-Schulz, which ends when the kept ones have arrived. They warn where that
            shows in the result.
        complete: Give null directions the SVD's null vectors, so that the result is orthonormal
            all the same; among these the choice is arbitrary. A zero matrix still maps to zero.
        max_iters: Steps of ``"polar_express"`` (8 unless given: right to rounding for singular
            values down to ``1e-3 * k**-0.25`` of the largest; each further step reaches down by
            four) and the most steps of ``"newton_schulz"`` (60 unless given). At least 1.
            Refused with other methods.

    Returns:
        Same shape, dtype and device as ``a``. Computed in float64 on CPU (on an accelerator
        ``"gram"`` computes in float64, the others in float32, except for float64 input) and
        rounded once at the end.

    Raises:
        ShapeError: ``a.ndim < 2``, or ``m`` or ``n`` is zero.
        ConfigError: ``a`` is not real floating-point, ``rtol`` is outside ``[0, 1)``, ``method``
            is unknown, or ``max_iters`` is below 1 or of no use to the method.
        NonFiniteError: ``a`` holds NaN or infinity.
        ConvergenceError: No driver converged.
        NotImplementedError: A second derivative was asked for where a direction is null.

    Warns:
        NumericalWarning: ``"gram"`` or ``"qdwh"`` met a matrix it cannot take; an iteration did
            not reach its accuracy; or the derivative was asked for where it does not exist.

    Note:
        Differentiable, any number of times, where the rank is full, and exact whatever the
        method: from ``a = q h`` through a Lyapunov equation in ``h``. It carries
        ``1 / (s_i + s_j)``, so repeated singular values do no harm. **Where a direction is null
        the derivative does not exist**: the backward pass then gives the derivative among
        matrices of the same rank (zero for a zero matrix) and warns.

    Source:
        Higham (1986), SIAM J. Sci. Stat. Comput. 7(4). QDWH: Nakatsukasa, Bai and Gygi (2010),
        SIAM J. Matrix Anal. Appl. 31(5). Polar Express: Amsel et al. (2025), arXiv:2505.16932.
        As a gradient map: Song, Sebe and Wang (2022), arXiv:2207.02119.

    Example:
        >>> polar_factor(torch.tensor([[0.0, -3.0], [2.0, 0.0]])).tolist()
        [[0.0, -1.0], [1.0, 0.0]]
    """
    require_matrix_shape("polar_factor", a)
    require_values("polar_factor", "a", a)
    differentiable = a.requires_grad and torch.is_grad_enabled()
    by_gram = method in ("auto", "gram") and a.dtype != torch.float64 == widest_dtype(a.device)
    if by_gram and not differentiable and plain():
        # Nothing to set up: autocast leaves float64 alone, and squares of less fit it.
        tall = a if a.shape[-2] >= a.shape[-1] else a.mT
        q = gram_route(tall, _rule(a, method, rtol, complete, max_iters)).q
        return (q if tall is a else q.mT).to(a.dtype).contiguous()
    rule = _rule(a, method, rtol, complete, max_iters)
    # The Gram route widens by itself, in parts, what no derivative is asked of.
    work = a if by_gram and not differentiable else a.to(rule.dtype)
    if a.dtype == torch.float64 or rule.dtype != torch.float64:
        # The polar factor of a multiple is the same, so the scale is a constant of the
        # derivative. Squares of lesser dtypes fit float64 as they are.
        work = work / power_of_two_scale(work)
    with without_autocast(work):
        if work.shape[-2] >= work.shape[-1]:
            q = tall_polar_factor(work, rule)
        else:
            q = tall_polar_factor(work.mT, rule).mT
    return q.to(a.dtype).contiguous()


def _rule(
    a: Tensor, method: PolarMethod, rtol: float | None, complete: bool, max_iters: int | None
) -> Rule:
    silent = method == "auto"
    method = _automatic(a) if method == "auto" else method
    resolution = torch.finfo(result_dtype(a.dtype)).eps
    dtype = widest_dtype(a.device) if method == "gram" else working_dtype(a)
    if rtol is None:
        rtol = max(4 * resolution, torch.finfo(dtype).eps * max(a.shape[-2:]))
    require_share("polar_factor", "rtol", rtol, zero=True)
    steps = _steps(method, max_iters)
    return Rule(method, dtype, resolution, rtol, complete, steps, silent)


def _automatic(a: Tensor) -> PolarMethod:
    """The route for a device and dtype: what ``benchmarks/polar.py`` found on CPU."""
    if a.dtype == torch.float64 or widest_dtype(a.device) != torch.float64:
        # No digits to spare for squaring the condition.
        return "svd"
    return "gram"


def _steps(method: PolarMethod, max_iters: int | None) -> int:
    match method:
        case "newton_schulz":
            steps = _NEWTON_SCHULZ_STEPS if max_iters is None else max_iters
        case "polar_express":
            steps = POLAR_EXPRESS_STEPS if max_iters is None else max_iters
        case "auto" | "svd" | "gram" | "qdwh":
            if max_iters is not None:
                raise ConfigError(
                    f"polar_factor takes max_iters only with 'newton_schulz' or 'polar_express', "
                    f"got {max_iters} with {method!r}; leave it out, this route stops by itself"
                )
            return 0
        case _:
            assert_never(method)
    require_count("polar_factor", "max_iters", steps, "steps")
    return steps
