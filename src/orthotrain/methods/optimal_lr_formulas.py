"""The step length that minimises a measure of ``w - eta l``, as pure functions on tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain._checks import require_values
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg.decompose import widest_dtype
from orthotrain.linalg.orthonormality import gram_deviation


@checked
def optimal_lr(weight: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"]) -> float | None:
    r"""Learning rate that minimises ``|w - eta l|^4`` to second order in ``eta``.

    With ``w`` and ``l`` the weight and the gradient as vectors::

        eta* = (w.w)(l.w) / ((w.w)(l.l) + 2 (l.w)^2)

    Args:
        weight: Any shape; all of it is one vector.
        gradient: Same shape.

    Returns:
        A plain number, computed in float64 where the device has it. ``None`` where ``eta*`` is
        not positive and finite: a zero weight or gradient, NaN or infinity, or a gradient step
        that lengthens the weight (``l.w <= 0``).

    Raises:
        ShapeError: The two differ in shape.
        ConfigError: One of them is not real floating-point.

    Source:
        Song, Sebe and Wang (2022), arXiv:2207.02119. That it is this minimiser is our derivation:
        ``(w.w - 2 e l.w + e^2 l.l)^2`` cut after ``e^2``.

    Example:
        >>> optimal_lr(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]))
        1.0
    """
    _require_pair("optimal_lr", weight, gradient)
    ww, lw, ll = inner_products(weight, gradient).tolist()
    return vector_optimum(ww, lw, ll)


@checked
def optimal_lr_matrix(
    weight: Float[Tensor, "*batch m n"],
    gradient: Float[Tensor, "*batch m n"],
    *,
    at_least: float = 0.0,
    at_most: float = math.inf,
) -> float | None:
    r"""Learning rate in an interval that leaves ``W - eta L`` closest to orthonormal.

    Minimises the quartic ``|(W - eta L)^T (W - eta L) - 1|_F^2`` exactly, on the smaller side of
    the matrix and summed over the batch: with ``A = W^T W - 1``, ``B = W^T L + L^T W``,
    ``C = L^T L`` it is::

        <A,A> - 2 <A,B> eta + (<B,B> + 2 <A,C>) eta^2 - 2 <B,C> eta^3 + <C,C> eta^4

    and its minimum is at a real root of the derivative or at an end of the interval.

    Args:
        weight: ``(*batch, m, n)``.
        gradient: Same shape.
        at_least: Lower end, at least 0.
        at_most: Upper end, not below ``at_least``.

    Returns:
        A plain number in ``[at_least, at_most]``, computed in float64 where the device has it.
        At an orthonormal ``W`` it is ``at_least``. ``None`` for a zero gradient, NaN or infinity.

    Raises:
        ShapeError: The two differ in shape, or have less than two dimensions.
        ConfigError: One of them is not real floating-point, or the interval is empty.

    Source:
        Ours; the published OLR looks at the weight as a vector (:func:`optimal_lr`).

    Example:
        >>> round(optimal_lr_matrix(2 * torch.eye(3), torch.eye(3), at_most=2.0), 9)
        1.0
    """
    _require_pair("optimal_lr_matrix", weight, gradient)
    if weight.ndim < 2:
        raise ShapeError(
            f"optimal_lr_matrix needs (*batch, m, n), got {tuple(weight.shape)}; flatten a "
            "convolution weight with weight.flatten(1)"
        )
    if not 0 <= at_least <= at_most:
        raise ConfigError(
            f"optimal_lr_matrix needs 0 <= at_least <= at_most, got {at_least} and {at_most}"
        )
    return matrix_optimum(quartic_of(weight, gradient).tolist(), at_least, at_most)


def _require_pair(function: str, weight: Tensor, gradient: Tensor) -> None:
    require_values(function, "weight", weight)
    require_values(function, "gradient", gradient)
    if weight.shape != gradient.shape:
        raise ShapeError(
            f"{function} needs a weight and a gradient of one shape, got {tuple(weight.shape)} "
            f"and {tuple(gradient.shape)}"
        )


def wide(tensor: Tensor) -> Tensor:
    """Without gradient, in float64, which holds the square of any float32 (not on Apple's)."""
    return tensor.detach().to(widest_dtype(tensor.device))


def inner_products(weight: Tensor, gradient: Tensor) -> Tensor:
    """``w.w``, ``l.w`` and ``l.l``."""
    w, g = wide(weight).flatten(), wide(gradient).flatten()
    return torch.stack([w @ w, g @ w, g @ g])


def vector_optimum(ww: float, lw: float, ll: float) -> float | None:
    """``eta*`` from the inner products; ``None`` where it is not positive and finite."""
    below = ww * ll + 2 * lw * lw
    # Not positive, NaN or infinite: none of these passes both comparisons.
    eta = ww * lw / below if 0 < below < math.inf else math.nan
    return eta if 0 < eta < math.inf else None


def quartic_of(weight: Tensor, gradient: Tensor) -> Tensor:
    """Coefficients of the defect from ``eta^0`` to ``eta^4`` for ``L / |L|``, then ``|L|``."""
    w, g = wide(weight), wide(gradient)
    if w.shape[-2] < w.shape[-1]:
        w, g = w.mT, g.mT
    size = torch.linalg.vector_norm(g)
    g = g / torch.where(size > 0, size, 1.0)
    a = gram_deviation(w.mT)
    b = w.mT @ g
    b = b + b.mT
    c = g.mT @ g
    return torch.stack(
        [
            (a * a).sum(),
            -2 * (a * b).sum(),
            (b * b).sum() + 2 * (a * c).sum(),
            -2 * (b * c).sum(),
            (c * c).sum(),
            size,
        ]
    )


def matrix_optimum(quartic: Sequence[float], low: float, high: float) -> float | None:
    """Where in ``[low, high]`` the quartic of :func:`quartic_of` is least."""
    *coefficients, size = quartic
    if size == 0 or not all(map(math.isfinite, quartic)):
        return None
    defect = np.polynomial.Polynomial(coefficients)
    # An end of the interval is best only where a root lies beyond it. The real part of a complex
    # root is tried in vain but without harm; that of a double root split by rounding is the root.
    places = (float(root.real) / size for root in defect.deriv().roots())
    candidates = [min(max(place, low), high) for place in places]
    return min(candidates, key=lambda eta: float(defect(eta * size)))


def cosine(ww: float, lw: float, ll: float) -> float | None:
    """Cosine of two vectors from their inner products; ``None`` where one is zero."""
    size = math.sqrt(ww) * math.sqrt(ll)
    return lw / size if 0 < size < math.inf else None
