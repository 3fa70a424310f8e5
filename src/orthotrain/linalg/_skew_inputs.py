"""What a matrix must be that turns by its exponential or its Cayley transform."""

from __future__ import annotations

import torch
from torch import Tensor

from orthotrain._checks import known, require_finite
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg._symmetric import rounding
from orthotrain.linalg.decompose import working_dtype


def require_skew_side(function: str, a: Tensor) -> None:
    """Raise ShapeError unless ``a`` is ``(*batch, n, n)`` with ``n >= 1``."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise ShapeError(
            f"{function} needs a of shape (*batch, n, n) with n >= 1, got {tuple(a.shape)}; only a "
            f"square matrix can be skew: pad the smaller side with zeros"
        )


def skew_in_working_dtype(function: str, a: Tensor) -> Tensor:
    """``a`` for computing; raises unless it is finite and, to rounding in its dtype, skew."""
    require_skew_side(function, a)
    require_finite(function, "a", a)
    work = a.to(working_dtype(a))
    gap = (work + work.mT).detach().abs().amax(dim=(-2, -1))
    if known((gap > 2 * rounding(a.dtype) * work.detach().abs().amax(dim=(-2, -1))).any()):
        raise ConfigError(
            f"{function} needs a skew matrix, a^T = -a, got max|a + a^T| of "
            f"{float(gap.max()):.3g} in a of shape {tuple(a.shape)}; take its skew_part first"
        )
    # Angles are known to norm * eps: from here on less than half of the digits would be right.
    most = torch.finfo(work.dtype).eps ** -0.5
    norm = torch.linalg.matrix_norm(work.detach())
    if known((norm > most).any()):
        raise ConfigError(
            f"{function} needs matrices of a norm up to {most:.2g} in {work.dtype}, got one of "
            f"{float(norm.max()):.3g}; it turns by that many radians, of which rounding leaves "
            f"less than half of the digits: scale it down"
        )
    return work
