"""What a later look needs of one weight: its polar factor and its triangle, kept small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orthotrain.linalg._gram_in_parts import fits
from orthotrain.linalg.rank import rounding_rtol
from orthotrain.linalg.subspace import mixing_of_triangles, polar_and_triangle


@dataclass(frozen=True)
class Look:
    """One weight at one time.

    Attributes:
        q: Polar factor ``(*groups, m, n)``. Of a large weight it is kept in float16: the rounding
            is random, and in a mean over ``m n`` products below 5e-6.
        r: ``(*groups, k (k + 1) / 2)``, the upper triangle of ``R``, row by row.
    """

    q: Tensor
    r: Tensor


@torch.no_grad()
def look_at(weight: Tensor) -> Look:
    """The look at ``(*groups, m, n)``.

    Raises:
        NonFiniteError: It holds NaN or infinity.
    """
    # Judged by the dtype the weight was rounded in: what a low-rank product leaves in its null
    # directions is noise of that size, and would count as a basis in a wider dtype.
    q, r = polar_and_triangle(weight, rtol=rounding_rtol(weight))
    rows, columns = torch.triu_indices(*r.shape[-2:], device=r.device)
    return Look(q, r[..., rows, columns])


def kept(look: Look, *, instead_of: Look | None = None) -> Look:
    """A look as it is kept, in the memory of one that no one needs any more.

    Without that, old and new looks are all over the heap, and a look at a whole model takes three
    times the memory of its largest layer.
    """
    dtype = torch.float16 if fits(look.q) else look.q.dtype
    if instead_of is not None:
        q, r = instead_of.q, instead_of.r
        same = q.shape == look.q.shape and (q.dtype, r.dtype) == (dtype, look.r.dtype)
        if same and q.device == look.q.device:
            q.copy_(look.q)
            r.copy_(look.r)
            return instead_of
    return Look(look.q.to(dtype), look.r)


def nothing_like(weight: Tensor) -> Look:
    """What stands for a look at a weight that is not finite."""
    k = min(weight.shape[-2:])
    r = weight.new_full((*weight.shape[:-2], k * (k + 1) // 2), torch.nan)
    return Look(q=torch.full_like(weight, torch.nan), r=r)


def compared(before: Look, after: Look) -> tuple[float | None, float | None]:
    """Stability and mixing, each ``None`` where there is none."""
    device = after.q.device
    r_before, r_after = before.r.to(device), after.r
    if not (bool(r_before.isfinite().all()) and bool(r_after.isfinite().all())):
        return None, None
    stability = _stability(before.q.to(device), after.q)
    return stability, mixing_of_triangles(*_scaled(r_before, r_after)).mean().item()


def _stability(q_before: Tensor, q_after: Tensor) -> float | None:
    # Every singular value of a polar factor is one or zero, so its squares sum to its rank.
    ranks = [_sums(q, q).round() for q in (q_before, q_after)]
    directions = int(torch.minimum(*ranks).sum().item())
    if directions == 0:
        return None
    return max(-1.0, min(1.0, _sums(q_before, q_after).sum().item() / directions))


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the matrices of two batches, in float64, some rows at a time."""
    rows = max(1, _NUMBERS // a.shape[-1])
    parts = zip(torch.split(a, rows, dim=-2), torch.split(b, rows, dim=-2), strict=True)
    return torch.stack([(one.double() * two.double()).sum(dim=(-2, -1)) for one, two in parts]).sum(
        dim=0
    )


_NUMBERS = 2**16  # that are widened at once, of each matrix


def _scaled(r_before: Tensor, r_after: Tensor) -> tuple[Tensor, Tensor]:
    """Both as matrices of one row, the larger entry of the two between one and two."""
    largest = torch.maximum(r_before.abs().amax(-1), r_after.abs().amax(-1))
    scale = torch.where(largest > 0, largest, 1.0)[..., None, None]
    return r_before.unsqueeze(-2) / scale, r_after.unsqueeze(-2) / scale
