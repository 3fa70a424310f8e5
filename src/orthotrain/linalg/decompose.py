"""Thin SVD in the precision the package decomposes in, with a ladder of drivers.

Float64 on CPU, float32 on an accelerator (float64 input stays float64), never half precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain._doors import checked
from orthotrain.errors import ConvergenceError, NumericalWarning
from orthotrain.linalg._inputs import require_matrix, without_autocast

# Public and documented, but not declared as exported by torch's stubs.
LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def working_dtype(a: Float[Tensor, "*shape"]) -> torch.dtype:
    """The dtype in which ``a`` is decomposed: float64 on CPU, float32 on an accelerator.

    Float64 input stays float64 everywhere. Half precision is never decomposed as such.

    Example:
        >>> working_dtype(torch.zeros(2, 2, dtype=torch.bfloat16))
        torch.float64
    """
    if a.dtype == torch.float64 or a.device.type == "cpu":
        return torch.float64
    return torch.float32


def widest_dtype(device: torch.device) -> torch.dtype:
    """The widest real dtype of a device: float64, but float32 on Apple's, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


@checked
def thin_svd(
    a: Float[Tensor, "*batch m n"],
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k n"]]:
    """Thin singular value decomposition ``a = u @ diag(s) @ vh`` with ``k = min(m, n)``.

    Args:
        a: ``(*batch, m, n)`` with ``m, n >= 1``. Batch entries are independent, but an entry on
            which a driver fails sends those decomposed with it to the next driver.

    Returns:
        ``(u, s, vh)``, contiguous, without gradient, in ``working_dtype(a)`` whatever the dtype
        of ``a``: the caller rounds once, after its own products. ``s`` is sorted from large to
        small.

    Raises:
        ShapeError: ``a.ndim < 2``, or ``m`` or ``n`` is zero.
        ConfigError: ``a`` is not real floating-point.
        NonFiniteError: ``a`` holds NaN or infinity; this is tested first, since drivers answer
            NaN with anything from an error to finite numbers.
        ConvergenceError: Every driver failed.

    Warns:
        NumericalWarning: A driver failed and the next one was used.

    Note:
        Input of float32 or less on CPU takes the eigenvectors of its float64 Gram matrix while
        the condition number is below 2e4, which is exact to the input's own rounding.
        Not differentiable: singular vectors have no derivative where singular values repeat.

    Example:
        >>> u, s, vh = thin_svd(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        >>> u.shape, s.tolist(), vh.shape
        (torch.Size([3, 2]), [4.0, 3.0], torch.Size([2, 2]))
    """
    require_matrix("thin_svd", a)
    work = a.detach().to(working_dtype(a))
    rounded = a.dtype != work.dtype
    with without_autocast(work):
        # A wide matrix takes 1.2 to 2.5 times as long as its transpose. A QR of our own first
        # takes .97 to 1.16 of the time (LAPACK's gesdd does one itself), so there is none.
        # Measured with torch 2.13 on one CPU thread, aspects 4 to 16.
        if work.shape[-2] < work.shape[-1]:
            v, s, uh = _tall_svd(work.mT, rounded=rounded)
            u, vh = uh.mT, v.mT
        else:
            u, s, vh = _tall_svd(work, rounded=rounded)
    return u.contiguous(), s, vh.contiguous()


def singular_values(a: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch k"]:
    """Singular values from large to small, in ``working_dtype(a)``.

    The caller has checked ``a``. Differentiable where singular values are simple.
    """
    (s,) = _first_to_converge(
        "singular_values",
        a.to(working_dtype(a)),
        lambda x, driver: (torch.linalg.svdvals(x, driver=driver),),
    )
    return s


def singular_values_by_gram(
    a: Float[Tensor, "*batch m n"], *, digits: torch.dtype | None = None
) -> Float[Tensor, "*batch k"]:
    """Singular values from large to small, without gradient; the caller has checked ``a``.

    Eigenvalues of the float64 Gram matrix of the smaller side, where the input has no more digits
    than those can tell apart: known to about ``256 * eps64`` of the largest (see ``polar_factor``),
    a singular value of float32 input is right down to 2.4e-7 of the largest. Elsewhere
    ``singular_values``. ``digits`` is the dtype whose digits ``a`` has, where its own is wider.
    """
    a = a.detach()
    if (digits or a.dtype) != torch.float64 and widest_dtype(a.device) == torch.float64:
        work = a.double()
        gram = work.mT @ work if work.shape[-2] >= work.shape[-1] else work @ work.mT
        try:
            eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
        except LinAlgError:
            a = work
        else:
            return eigenvalues.flip(-1).clamp(min=0).sqrt()
    return singular_values(a)


def leading_factors(
    a: Float[Tensor, "*batch m n"], k: int
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k n"]]:
    """``p, s, qh`` whose product is the best approximation of rank ``k``; the caller has checked.

    Without gradient, in the precision of ``working_dtype(a)``. Of input with fewer digits than
    float64 the eigenvectors of the float64 Gram matrix are taken, whatever the condition number:
    ``a`` is projected onto the leading ones. Its squared error is above the least one by 5 eps64
    of ``|a|_F^2`` at most, measured to 768x768 and condition 1e9; rounding the product to float32
    adds more. ``s`` is right to 1e-6 of the largest, and all columns of ``p`` are orthonormal.
    Elsewhere as ``thin_svd``.
    """
    a = a.detach()
    if a.dtype != torch.float64 and widest_dtype(a.device) == torch.float64:
        with suppress(LinAlgError):
            return gram_factors(a.double(), k)
    u, s, vh = thin_svd(a)
    return u[..., :k], s[..., :k], vh[..., :k, :]


def gram_factors(a: Float[Tensor, "*batch m n"], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """``leading_factors`` of float64 values that are right to float32's digits.

    Raises:
        LinAlgError: The eigenvalues did not converge.
    """
    tall = a.shape[-2] >= a.shape[-1]
    work = a if tall else a.mT
    v = torch.linalg.eigh(work.mT @ work)[1][..., -k:].flip(-1)
    u = work @ v
    s = torch.linalg.vector_norm(u, dim=-2)
    if bool((s[..., -1] * _GRAM_EXACT_CONDITION > s[..., 0]).all()):
        u = u / s.unsqueeze(-2)
    else:  # columns of small singular values lean on large ones; null ones get a direction
        u, r = torch.linalg.qr(u)
        s = r.diagonal(dim1=-2, dim2=-1)
        u, s = u * torch.where(s < 0, -1.0, 1.0).unsqueeze(-2), s.abs()
    return (u, s, v.mT) if tall else (v, s, u.mT)


# The Gram route loses orthonormality at most as (17 + 1.4 condition^2) eps64 (8x8 to 2304x256):
# at this condition about one float32 eps. Measured it is .05 of that.
_GRAM_EXACT_CONDITION = 2e4


def _tall_svd(a: Tensor, *, rounded: bool) -> tuple[Tensor, ...]:
    """``u, s, vh``, by the Gram matrix for the entries of a rounded batch that it is exact for."""
    if not rounded:
        return _first_to_converge("thin_svd", a, _thin)
    try:
        eigenvalues, v = torch.linalg.eigh(a.mT @ a)
    except LinAlgError:
        return _first_to_converge("thin_svd", a, _thin)
    inexact = eigenvalues[..., 0] * _GRAM_EXACT_CONDITION**2 <= eigenvalues[..., -1]
    try:
        exact_for_some = not bool(inexact.all())
    except RuntimeError:  # under torch.vmap nobody can know
        exact_for_some = False
    if not exact_for_some:
        return _first_to_converge("thin_svd", a, _thin)
    factors = _from_right_vectors(a, v)
    if bool(inexact.any()):
        exact = _first_to_converge("thin_svd", a[inexact], _thin)
        for whole, part in zip(factors, exact, strict=True):
            whole[inexact] = part
    return factors


def _from_right_vectors(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``u, s, vh`` of tall matrices of full rank whose right singular vectors are known.

    Measured with torch 2.13 on one CPU thread, ``eigh`` included: .5 of the SVD's time for a
    square matrix, .3 at aspect 4.
    """
    u = a @ v
    s, order = torch.linalg.vector_norm(u, dim=-2).sort(dim=-1, descending=True)
    columns = order.unsqueeze(-2)
    u = u.take_along_dim(columns, -1) / s.unsqueeze(-2)
    return u, s, v.take_along_dim(columns, -1).mT.contiguous()


def _thin(a: Tensor, driver: str | None) -> tuple[Tensor, ...]:
    return tuple(torch.linalg.svd(a, full_matrices=False, driver=driver))


@dataclass(frozen=True)
class _Rung:
    """One attempt: which driver, and whether in float64 on the CPU."""

    name: str
    driver: str | None
    on_cpu: bool = False


_CPU_RUNG = _Rung("gesdd on the CPU in float64", None, on_cpu=True)


def _rungs(device: torch.device) -> tuple[_Rung, ...]:
    match device.type:
        case "cpu":
            return (_CPU_RUNG,)
        case "cuda":
            return (_Rung("gesvdj", "gesvdj"), _Rung("gesvd", "gesvd"), _CPU_RUNG)
        case _:
            return (_Rung(f"the default driver on {device.type}", None), _CPU_RUNG)


def _are_finite(factors: tuple[Tensor, ...]) -> bool:
    try:
        return all(bool(torch.isfinite(factor).all()) for factor in factors)
    except RuntimeError:  # under torch.vmap nobody can know
        return True


def _first_to_converge(
    function: str,
    a: Tensor,
    decompose: Callable[[Tensor, str | None], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Factors from the first rung that converges; a rung below the first is announced."""
    failed: list[str] = []
    for rung in _rungs(a.device):
        x = a.to("cpu", torch.float64) if rung.on_cpu else a
        try:
            factors = decompose(x, rung.driver)
        except LinAlgError:
            failed.append(rung.name)
            continue
        # An accelerator's Jacobi driver may return NaN where it should raise.
        if not _are_finite(factors):
            failed.append(rung.name)
            continue
        if failed:
            warnings.warn(
                f"{function} of shape {tuple(a.shape)}: {', '.join(failed)} did not converge, "
                f"used {rung.name}",
                NumericalWarning,
                stacklevel=3,
            )
        return tuple(factor.to(a) for factor in factors)
    raise ConvergenceError(
        f"{function} of shape {tuple(a.shape)} and norm {_norm(a)} did not converge with "
        f"{', '.join(failed)}; entries of very different size are the usual cause: scale the "
        f"matrix or add a small multiple of the identity"
    )


def _norm(a: Tensor) -> str:
    try:
        return f"{float(a.detach().norm()):.3g}"
    except RuntimeError:  # under torch.vmap, where NaN was not noticed before, either
        return "unknown under torch.vmap (NaN and infinity are refused without it)"
