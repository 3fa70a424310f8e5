"""Singular value decomposition in the metric of a layer's inputs and output gradients."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain._doors import checked
from orthotrain.errors import ConfigError, NotPositiveDefiniteError, RankError, ShapeError
from orthotrain.linalg._inputs import require_matrix, without_autocast
from orthotrain.linalg.decompose import singular_values_by_gram, thin_svd, working_dtype
from orthotrain.linalg.randomized import nearly_leading_factors

#: Share of the mean eigenvalue that is added to the diagonal of a covariance.
RIDGE: Final = 1e-3


class MetricSVD(NamedTuple):
    """``w = left @ diag(s) @ right`` with ``left^T b left = 1`` and ``right a right^T = 1``.

    ``left`` is ``(*batch, m, r)``, ``s`` ``(*batch, r)`` from large to small and ``right``
    ``(*batch, r, n)``, with ``r = min(m, n)``. The leading ``k`` parts are the matrix of rank
    ``k`` that is nearest to ``w`` in the metric; the squares of the rest of ``s`` add up to its
    distance ``tr(b d a d^T)``.
    """

    left: Tensor
    s: Tensor
    right: Tensor


@checked
def metric_svd(
    w: Float[Tensor, "*batch m n"],
    *,
    a: Float[Tensor, "*batch n n"] | None = None,
    b: Float[Tensor, "*batch m m"] | None = None,
    ridge: float = RIDGE,
) -> MetricSVD:
    """Singular value decomposition of ``w`` in the metric ``|d|^2 = tr(b d a d^T)``.

    With ``a = E[x x^T]`` of a layer's inputs the metric is the mean squared error of its outputs.
    With ``b = E[g g^T]`` of the gradients there, too, it is the second-order estimate of the loss
    under the K-FAC approximation. With Cholesky factors ``a = L L^T`` and ``b = R R^T``, it is the
    plain decomposition of ``R^T w L``.

    Args:
        w: ``(*batch, m, n)`` with ``m, n >= 1``. Batch entries are independent.
        a: ``(*batch, n, n)``, symmetric, positive semidefinite, not zero. ``None`` is the
            identity, with no ridge.
        b: ``(*batch, m, m)``, the same for the other side.
        ridge: Share of the mean eigenvalue that is added to the diagonal of ``a`` and ``b``.

    Returns:
        ``(left, s, right)`` without gradient, in ``working_dtype(w)``: float64 on CPU, float32 on
        an accelerator.

    Raises:
        ShapeError: ``w`` is no matrix, or ``a`` or ``b`` does not fit it.
        ConfigError: A tensor is not real floating-point, or ``ridge`` is negative.
        NonFiniteError: A tensor holds NaN or infinity.
        NotPositiveDefiniteError: ``a`` or ``b`` is zero, or has a negative eigenvalue that
            the ridge does not lift.
        ConvergenceError: Every driver of the decomposition failed.

    Note:
        The derivative is not defined; the result carries no graph. ``s`` does not change where
        the inputs (or outputs) are turned: ``w q^T`` with ``q a q^T`` for an orthogonal ``q``;
        with ``ridge=0``, for every invertible one.

    Source:
        Martens and Grosse (2015), arXiv:1503.05671, for the metric. The truncation is Eckart and
        Young's in it.

    Example:
        >>> w = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> often = torch.diag(torch.tensor([1.0, 1.0, 100.0]))  # the third input is large
        >>> [round(x, 2) for x in metric_svd(w, a=often, ridge=0.0).s.tolist()]
        [10.0, 3.0, 2.0]
    """
    require_matrix("metric_svd", w, name="w")
    if not ridge >= 0:
        raise ConfigError(f"metric_svd needs a ridge of 0 or more, got {ridge}; try 1e-3")
    work = w.detach().to(working_dtype(w))
    with without_autocast(work):
        seen = _seen(work, a, b, ridge)
        return _back(*thin_svd(seen.matrix), seen)


def metric_values(
    w: Float[Tensor, "*batch m n"],
    *,
    a: Float[Tensor, "*batch n n"] | None = None,
    b: Float[Tensor, "*batch m m"] | None = None,
    digits: torch.dtype | None = None,
) -> Float[Tensor, "*batch r"]:
    """``metric_svd(w, a=a, b=b).s`` alone, in less than half of its time.

    Of ``w`` with fewer digits than float64 right down to 1e-6 of the largest; ``digits`` is the
    dtype whose digits it has, where its own is wider.
    """
    require_matrix("metric_values", w, name="w")
    work = w.detach().to(working_dtype(w))
    with without_autocast(work):
        matrix = _seen(work, a, b, RIDGE).matrix
        return singular_values_by_gram(matrix, digits=digits or w.dtype)


def nearest_in_metric(
    w: Float[Tensor, "*batch m n"],
    rank: int,
    *,
    a: Float[Tensor, "*batch n n"] | None = None,
    b: Float[Tensor, "*batch m m"] | None = None,
    digits: torch.dtype | None = None,
    generator: torch.Generator,
) -> MetricSVD:
    """The leading ``rank`` parts of ``metric_svd(w, a=a, b=b)``, by ``nearly_leading_factors``.

    In the metric their product is at most 1.02 times as far from ``w`` as the nearest matrix.

    Args:
        w: As in ``metric_svd``.
        rank: ``k``, from 1 to ``min(m, n)``.
        a: As in ``metric_svd``.
        b: As in ``metric_svd``.
        digits: The dtype whose digits ``w`` has, where its own is wider.
        generator: Of the sketch, on the CPU.
    """
    require_matrix("nearest_in_metric", w, name="w")
    work = w.detach().to(working_dtype(w))
    with without_autocast(work):
        seen = _seen(work, a, b, RIDGE)
        found = nearly_leading_factors(
            seen.matrix, rank, digits=digits or w.dtype, generator=generator
        )
        return _back(*found, seen)


@checked
def truncated(
    decomposition: MetricSVD, rank: int
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k n"]]:
    """Plain singular value decomposition ``u, s, vh`` of the nearest matrix of a rank.

    Args:
        decomposition: What ``metric_svd`` gave.
        rank: ``k``, from 1 to ``min(m, n)``.

    Returns:
        ``u`` with orthonormal columns, ``s`` from large to small, ``vh`` with orthonormal rows;
        dtype and device of the decomposition.

    Raises:
        RankError: ``rank`` is out of range.

    Example:
        >>> w = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> [round(x, 4) for x in truncated(metric_svd(w), 2)[1].tolist()]
        [3.0, 2.0]
    """
    left, s, right = decomposition
    if not 1 <= rank <= s.shape[-1]:
        raise RankError(
            f"truncated needs a rank from 1 to {s.shape[-1]} for factors of shapes "
            f"{tuple(left.shape)} and {tuple(right.shape)}, got {rank}; choose a rank in that range"
        )
    with without_autocast(left):
        q_left, r_left = torch.linalg.qr(left[..., :rank] * s[..., None, :rank])
        q_right, r_right = torch.linalg.qr(right[..., :rank, :].mT)
        p, values, qh = thin_svd(r_left @ r_right.mT)
        return q_left @ p, values, qh @ q_right.mT


class _Seen(NamedTuple):
    """``matrix = left_root^T w right_root``, with the roots of both sides of a metric."""

    matrix: Tensor
    left_root: Tensor | None
    right_root: Tensor | None


def _seen(work: Tensor, a: Tensor | None, b: Tensor | None, ridge: float) -> _Seen:
    right_root = _root(a, work, ridge, name="a", side=-1)
    left_root = _root(b, work, ridge, name="b", side=-2)
    matrix = work if left_root is None else left_root.mT @ work
    matrix = matrix if right_root is None else matrix @ right_root
    return _Seen(matrix, left_root, right_root)


def _back(p: Tensor, s: Tensor, qh: Tensor, seen: _Seen) -> MetricSVD:
    """From singular vectors of what is seen to those in the metric."""
    if seen.left_root is not None:
        p = torch.linalg.solve_triangular(seen.left_root.mT, p, upper=True)
    if seen.right_root is not None:
        qh = torch.linalg.solve_triangular(seen.right_root, qh, upper=False, left=False)
    return MetricSVD(p, s, qh)


def _root(spd: Tensor | None, w: Tensor, ridge: float, *, name: str, side: int) -> Tensor | None:
    """Lower Cholesky factor of a covariance and its ridge; ``None`` for the identity."""
    if spd is None:
        return None
    size = w.shape[side]
    if spd.shape != (*w.shape[:-2], size, size):
        raise ShapeError(
            f"metric_svd needs {name} of shape {(*w.shape[:-2], size, size)} for w of shape "
            f"{tuple(w.shape)}, got {tuple(spd.shape)}; a belongs to the columns, b to the rows"
        )
    require_matrix("metric_svd", spd, name=name)
    spd = spd.detach().to(w)
    mean = spd.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    if bool((mean <= 0).any()):
        raise NotPositiveDefiniteError(
            f"metric_svd needs {name} with a positive trace, got a smallest mean eigenvalue of "
            f"{float(mean.min()):.3g}; leave {name} out where nothing was seen"
        )
    # In units of the mean eigenvalue: squares of small gradients do not vanish in float32.
    unit = spd / mean + ridge * torch.eye(size, dtype=w.dtype, device=w.device)
    root, info = torch.linalg.cholesky_ex(unit)
    if bool((info > 0).any()):
        raise NotPositiveDefiniteError(
            f"metric_svd needs {name} positive semidefinite, got a negative or zero eigenvalue "
            f"that ridge={ridge} does not lift; raise ridge, or form {name} in float64"
        )
    scaled: Tensor = root * mean.sqrt()
    return scaled
