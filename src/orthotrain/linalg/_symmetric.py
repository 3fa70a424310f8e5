"""What the kernels for symmetric matrices share: symmetry within rounding, and ``eigh`` itself."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from orthotrain._checks import require_finite, require_values
from orthotrain.errors import ConfigError, ConvergenceError, NumericalWarning, ShapeError
from orthotrain.linalg._inputs import result_dtype
from orthotrain.linalg.decompose import LinAlgError

# A product that should be symmetric is so to one eps in float32 and float64 (measured, 8x8 to
# 256x256, up to 20000 samples). Sums taken in parts and moving averages add to it.
_ROUNDINGS = 32


def rounding(dtype: torch.dtype) -> float:
    """Relative rounding that an entry of a computed matrix of this dtype may carry.

    Half precision is the rounded result of a computation in float32.
    """
    unit = _ROUNDINGS * torch.finfo(result_dtype(dtype)).eps
    return unit if dtype.itemsize >= 4 else unit + torch.finfo(dtype).eps


def require_square(function: str, a: Tensor) -> None:
    """Raise unless ``a`` is ``(*batch, n, n)`` with ``n >= 1``."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise ShapeError(
            f"{function} needs a of shape (*batch, n, n) with n >= 1, got {tuple(a.shape)}; "
            f"form a covariance first, for instance x @ x.mT / x.shape[-1]"
        )
    require_values(function, "a", a)


def symmetric_part(function: str, a: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """``(a + a^T) / 2``; raises unless ``a`` is finite and, to rounding in ``dtype``, symmetric.

    May be ``a`` itself.
    """
    dtype = a.dtype if dtype is None else dtype
    turned = a.mT
    # The usual case first, at a tenth of the cost: exactly symmetric, and a finite sum.
    if torch.equal(a, turned) and bool(a.sum().abs() < torch.inf):
        return a
    require_finite(function, "a", a)
    largest = a.abs().amax(dim=(-2, -1))
    gap = (a - turned).abs().amax(dim=(-2, -1))
    if bool((gap > 2 * rounding(dtype) * largest).any()):
        worst = float((gap / largest).nan_to_num(0.0).max())
        raise ConfigError(
            f"{function} needs a symmetric matrix, got an asymmetry max|a - a^T| / max|a| of "
            f"{worst:.3g} in a of shape {tuple(a.shape)}, beyond rounding in {dtype}; "
            f"symmetrize it if it should be symmetric: (a + a.mT) / 2"
        )
    # Halves first, so that large entries do not overflow.
    return torch.add(a / 2, turned, alpha=0.5)


def eigh_each(function: str, a: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues and eigenvectors; an entry that fails does not spoil the others.

    ``a`` is exactly symmetric.
    """
    try:
        # Transposed, so that LAPACK's column-major copy is straight: 1 % of a root at 256.
        values, vectors = torch.linalg.eigh(a.mT)
    except (LinAlgError, NotImplementedError):
        return _one_by_one(function, a)
    # An accelerator's driver may return NaN where it should raise.
    if a.device.type != "cpu" and not bool(torch.isfinite(values).all()):
        return _one_by_one(function, a)
    return values, vectors


def _one_by_one(function: str, a: Tensor) -> tuple[Tensor, Tensor]:
    """Entry by entry, and in float64 on the CPU for those that fail where they are."""
    values = a.new_empty(a.shape[:-1])
    vectors = torch.empty_like(a)
    size = a.shape[-1]
    moved = 0
    flat = zip(
        a.reshape(-1, size, size),
        values.view(-1, size),
        vectors.view(-1, size, size),
        strict=True,
    )
    for matrix, its_values, its_vectors in flat:
        found = _alone(matrix)
        if found is None:
            moved += 1
            found = _by_svd(function, matrix)
        its_values.copy_(found[0])
        its_vectors.copy_(found[1])
    if moved:
        warnings.warn(
            f"{function} of shape {tuple(a.shape)}: eigh did not converge for {moved} of the "
            f"matrices, used the SVD on the CPU in float64 for these",
            NumericalWarning,
            stacklevel=2,
        )
    return values, vectors


def _alone(a: Tensor) -> tuple[Tensor, Tensor] | None:
    """Eigenpairs of one matrix, None where ``eigh`` fails."""
    try:
        values, vectors = torch.linalg.eigh(a)
    except (LinAlgError, NotImplementedError):
        return None
    return (values, vectors) if bool(torch.isfinite(values).all()) else None


def _by_svd(function: str, a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenpairs of one symmetric matrix from the SVD of ``a + |a| 1``, which is semi-definite."""
    work = a.detach().to("cpu", torch.float64)
    shift = float(torch.linalg.matrix_norm(work))
    try:
        u, s, _ = torch.linalg.svd(work + shift * torch.eye(len(work), dtype=work.dtype))
    except LinAlgError as error:
        raise ConvergenceError(
            f"{function}: neither eigh nor the SVD converged for a matrix of size {len(work)} "
            f"and norm {shift:.3g}; look at its entries, or add a ridge"
        ) from error
    return (s - shift).flip(-1), u.flip(-1)
