"""SeFa: directions of a latent weight, by closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg import eigh
from orthotrain.linalg._inputs import require_finite, require_real_floating

# Entries nearer than this to the largest count as equal to it, so that rounding does not choose.
_TIE = 1e-6


def sefa_directions(
    weight: Float[Tensor, "*shape"], *, latent_axis: int | None = None
) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
    r"""Directions in latent space along which a weight stretches most (SeFa).

    With the weight as ``W``, ``(latent, features)``, and each column scaled to length one, these
    are the eigenvectors of ``W W^T``.

    Args:
        weight: What multiplies the latent, in one of these shapes:

            - ``nn.Linear``: ``(out, in)``, the latent is axis 1;
            - ``nn.ConvTranspose2d``: ``(in, out, kh, kw)``, the latent is axis 0;
            - ``EigenSubspace.u`` and the latent layer of ``SimpleGenerator``:
              ``(latent, features)``, axis 0. The subspace multiplies by its scales, too: pass
              ``(scale[:, None] * u)``.
        latent_axis: Which axis is the latent. None is the first of three axes or more and the
            shorter one of a matrix, since a latent becomes more features than it has coordinates;
            a square matrix does not tell.

    Returns:
        ``(directions, strengths)``: directions ``(d, d)``, orthogonal, **one a row**, from the
        largest eigenvalue to the smallest; strengths are the eigenvalues, ``(d,)``, not negative.
        The largest entry of every direction is positive (the first of equals). Both in the dtype
        and on the device of ``weight``. Where eigenvalues repeat, the directions between them are
        arbitrary.

    Raises:
        ShapeError: Fewer than two axes, or an empty one.
        ConfigError: Not real floating-point, no such axis, or a square matrix without one.
        NonFiniteError: ``weight`` holds NaN or infinity.
        ConvergenceError: No driver finds the eigenvalues.

    Note:
        A column of zeros, a feature that no latent reaches, stays zero. Not differentiable.

    Source:
        Shen and Zhou (2021), arXiv:2007.06600.

    Example:
        >>> weight = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0]])  # of nn.Linear(2, 3)
        >>> directions, strengths = sefa_directions(weight)
        >>> directions.tolist(), strengths.tolist()
        ([[0.0, 1.0], [1.0, 0.0]], [2.0, 1.0])
    """
    w = latent_matrix("sefa_directions", weight, latent_axis).detach().double()
    norms = w.norm(dim=0, keepdim=True)
    w = w / torch.where(norms > 0, norms, 1.0)
    gram = w @ w.mT
    values, vectors = eigh((gram + gram.mT) / 2)
    directions = _fixed_signs(vectors.mT.flip(0))
    strengths = values.flip(0).clamp(min=0)
    return directions.to(weight.dtype), strengths.to(weight.dtype)


def latent_matrix(
    function: str, weight: Tensor, latent_axis: int | None
) -> Float[Tensor, "latent features"]:
    """The weight as ``(latent, features)``; raises unless it is finite and real."""
    if weight.ndim < 2 or 0 in weight.shape:
        raise ShapeError(
            f"{function} needs a weight (out, in) or (in, out, ...), got {tuple(weight.shape)}; "
            f"pass the weight that multiplies the latent"
        )
    require_real_floating(function, weight, name="weight")
    axis = axis_of_latent(tuple(weight.shape), latent_axis)
    if axis is None or isinstance(latent_axis, bool) or not 0 <= axis < weight.ndim:
        raise ConfigError(
            f"{function} needs latent_axis to be an axis of the weight, got {latent_axis} for "
            f"shape {tuple(weight.shape)}; 1 for nn.Linear, 0 for a transposed convolution"
        )
    require_finite(function, weight, name="weight")
    return weight.movedim(axis, 0).flatten(1)


def axis_of_latent(shape: tuple[int, ...], latent_axis: int | None) -> int | None:
    """Which axis of a weight is the latent, counted from the front; None where nothing tells."""
    if latent_axis is not None:
        return latent_axis + len(shape) if latent_axis < 0 else latent_axis
    if len(shape) != 2:
        return 0
    return None if shape[0] == shape[1] else int(shape[1] < shape[0])


def _fixed_signs(directions: Tensor) -> Tensor:
    size = directions.abs()
    # The first of the largest: argmax of a mask is its first hit.
    first = (size >= (1 - _TIE) * size.amax(dim=1, keepdim=True)).int().argmax(dim=1, keepdim=True)
    signs = directions.gather(1, first).sign()
    return directions * signs
