"""How far an orthogonal basis has moved between two times: stability and mixing.

A weight is seen as an ``m x n`` matrix. Its polar factor ``Q`` is the basis, whose movement is
the *stability*; ``R`` of its QR decomposition is the *mixing* inside that basis.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain._doors import checked
from orthotrain.linalg._gram_in_parts import fits, polar_and_triangle_by_gram, tall
from orthotrain.linalg._inputs import (
    power_of_two_scale,
    require_matrix,
    require_same_shape,
    result_dtype,
    without_autocast,
)
from orthotrain.linalg.decompose import working_dtype
from orthotrain.linalg.polar import polar_factor


@checked
def basis_stability(
    before: Float[Tensor, "*batch m n"], after: Float[Tensor, "*batch m n"]
) -> Float[Tensor, "*batch"]:
    """Mean cosine between the columns of two weights' orthogonal bases; 1 is the same basis.

    With ``Q = U Vh`` of the thin SVD, this is ``trace(Q_before^T Q_after) / min(m, n)``, the mean
    over columns (rows, if wide) of the cosine between old and new direction. It does not depend
    on sign and order of singular vectors, nor on the scale of either weight.

    Args:
        before: ``(*batch, m, n)`` with ``m, n >= 1``. Flatten a convolution weight to
            ``(out, -1)`` first. Batch entries are independent.
        after: The same weight later; same shape.

    Returns:
        ``(*batch,)`` in [-1, 1], in float64 for float64 input and else in float32. A null
        direction, of a rank-deficient weight, counts as a cosine of 0.

    Raises:
        ShapeError: Different shapes, ``ndim < 2``, or ``m`` or ``n`` zero.
        ConfigError: Input that is not real floating-point.
        NonFiniteError: NaN or infinity.

    Note:
        Differentiable where ``polar_factor`` is: where both ranks are full.

    Source:
        Coquelin et al., arXiv:2401.08505.

    Example:
        >>> w = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> basis_stability(w, 5 * w).item(), basis_stability(w, -w).item()
        (1.0, -1.0)
    """
    require_matrix("basis_stability", before, name="before")
    require_matrix("basis_stability", after, name="after")
    require_same_shape("basis_stability", before, after)
    dtype = torch.promote_types(result_dtype(before.dtype), result_dtype(after.dtype))
    stability = basis_stability_from_polar(
        # Half precision would round the bases to three digits before they are compared.
        polar_factor(before.to(result_dtype(before.dtype))),
        polar_factor(after.to(result_dtype(after.dtype))),
    )
    return stability.to(dtype)


@checked
def basis_stability_from_polar(
    q_before: Float[Tensor, "*batch m n"], q_after: Float[Tensor, "*batch m n"]
) -> Float[Tensor, "*batch"]:
    """``basis_stability`` of weights whose polar factors are at hand.

    Keeping ``polar_factor(weight)`` instead of the weight saves one decomposition per comparison.

    Args:
        q_before: ``(*batch, m, n)`` from ``polar_factor``; not checked for orthonormality.
        q_after: Same shape.

    Returns:
        ``(*batch,)`` in [-1, 1], in float64 if both are, else in float32.

    Raises:
        ShapeError: Different shapes, ``ndim < 2``, or ``m`` or ``n`` zero.
        ConfigError: Input that is not real floating-point.
        NonFiniteError: NaN or infinity.

    Note:
        Linear in each argument, so differentiable in both.

    Source:
        Coquelin et al., arXiv:2401.08505.
    """
    require_matrix("basis_stability_from_polar", q_before, name="q_before")
    require_matrix("basis_stability_from_polar", q_after, name="q_after")
    require_same_shape("basis_stability_from_polar", q_before, q_after)
    dtype = torch.promote_types(result_dtype(q_before.dtype), result_dtype(q_after.dtype))
    work = torch.promote_types(working_dtype(q_before), working_dtype(q_after))
    columns = min(q_before.shape[-2:])
    cosine = (q_before.to(work) * q_after.to(work)).sum(dim=(-2, -1)) / columns
    # Rounding may pass 1 by a few eps.
    return cosine.clamp(-1.0, 1.0).to(dtype)


@checked
def mixing_similarity(
    before: Float[Tensor, "*batch m n"], after: Float[Tensor, "*batch m n"]
) -> Float[Tensor, "*batch"]:
    """How alike two weights are inside their orthogonal bases; 1 is alike, in scale too.

    ``1 - |R_after - R_before|_F / (|R_after|_F + |R_before|_F)`` with ``R`` of the QR
    decomposition, its diagonal made positive. A wide matrix is transposed first.

    Args:
        before: ``(*batch, m, n)`` with ``m, n >= 1``. Flatten a convolution weight to
            ``(out, -1)`` first. Batch entries are independent.
        after: The same weight later; same shape.

    Returns:
        ``(*batch,)`` in [0, 1], in float64 for float64 input and else in float32. Two zero
        matrices have similarity 1.

    Raises:
        ShapeError: Different shapes, ``ndim < 2``, or ``m`` or ``n`` zero.
        ConfigError: Input that is not real floating-point.
        NonFiniteError: NaN or infinity.

    Note:
        The normalization is ours: the authors publish a Euclidean similarity of ``R`` without
        one. Unlike the stability it depends on scale: ``w`` and ``2 w`` give 2/3. Both weights
        turned by one orthogonal matrix from the left give the same value. Differentiable where
        both ranks are full and the two differ.

    Source:
        Coquelin et al., arXiv:2401.08505, for the comparison of ``R``.

    Example:
        >>> w = torch.tensor([[3.0, 1.0], [0.0, 4.0], [0.0, 0.0]])
        >>> round(mixing_similarity(w, 2 * w).item(), 4)
        0.6667
    """
    require_matrix("mixing_similarity", before, name="before")
    require_matrix("mixing_similarity", after, name="after")
    require_same_shape("mixing_similarity", before, after)
    dtype = torch.promote_types(result_dtype(before.dtype), result_dtype(after.dtype))
    work = torch.promote_types(working_dtype(before), working_dtype(after))
    old, new = before.to(work), after.to(work)
    # One scale for both, so that their ratio stays.
    scale = torch.maximum(power_of_two_scale(old), power_of_two_scale(new))
    with without_autocast(old):
        r_old, r_new = _mixing(old / scale), _mixing(new / scale)
    return mixing_of_triangles(r_old, r_new).to(dtype)


def mixing_of_triangles(
    r_before: Float[Tensor, "*batch n n"], r_after: Float[Tensor, "*batch n n"]
) -> Float[Tensor, "*batch"]:
    """``mixing_similarity`` of weights whose triangles, with a positive diagonal, are at hand."""
    difference = torch.linalg.matrix_norm(r_after - r_before)
    total = torch.linalg.matrix_norm(r_after) + torch.linalg.matrix_norm(r_before)
    similarity: Tensor = 1 - difference / torch.where(total > 0, total, 1.0)
    return similarity


@torch.no_grad()
def polar_and_triangle(
    a: Float[Tensor, "*batch m n"], *, rtol: float
) -> tuple[Float[Tensor, "*batch m n"], Float[Tensor, "*batch k k"]]:
    """What ``basis_stability`` and ``mixing_similarity`` need of one weight; no gradient.

    Of a large one below float64 both come from its Gram matrix, in a fifth to a quarter of the time
    of an SVD and a QR decomposition. Stability and mixing are within 1e-5 of theirs. Those of a
    batch are decomposed one after another.

    Args:
        a: ``(*batch, m, n)``.
        rtol: Directions below this share of the largest singular value are null.

    Returns:
        Polar factor, and ``R`` of the tall orientation with ``k = min(m, n)`` and a positive
        diagonal; in float64 for float64 input, else in float32.

    Raises:
        NonFiniteError: ``a`` holds NaN or infinity.
    """
    require_matrix("polar_and_triangle", a)
    dtype = result_dtype(a.dtype)
    if not fits(a):
        q = polar_factor(a.to(dtype), rtol=rtol)
        # Without q it takes half of the time, and has no derivative.
        return q, _mixing(a.to(working_dtype(a)), mode="r").to(dtype)
    m, n = a.shape[-2:]
    found = [polar_and_triangle_by_gram(tall(each), rtol=rtol) for each in a.reshape(-1, m, n)]
    qs = [q if m >= n else q.T for q, _ in found]
    if a.ndim == 2:
        return qs[0], found[0][1]
    return (
        torch.stack(qs).reshape(a.shape),
        torch.stack([r for _, r in found]).reshape(*a.shape[:-2], min(m, n), min(m, n)),
    )


def _mixing(a: Tensor, mode: str = "reduced") -> Tensor:
    """``R`` of the QR decomposition of the tall orientation, diagonal made positive."""
    r: Tensor = torch.linalg.qr(tall(a), mode=mode).R
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    sign = torch.where(diagonal < 0, -1.0, 1.0).to(r.dtype).unsqueeze(-1)
    mixing: Tensor = sign * r
    return mixing
