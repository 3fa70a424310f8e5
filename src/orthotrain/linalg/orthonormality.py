"""How far rows are from orthonormal ones."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

# Far above the rounding of half precision, below what unset memory gives.
_FAR: Final = 0.1


def gram_deviation(w: Tensor) -> Tensor:
    """``W W^T - 1`` of the rows of ``W``: ``(*batch, m, n)`` to ``(*batch, m, m)``.

    In the dtype of ``w``. Differentiable everywhere. Its Frobenius norm is zero where the rows are
    orthonormal, and at least ``sqrt(m - n)`` where there are more rows than columns.
    """
    gram = w @ w.mT
    return gram - torch.eye(gram.shape[-1], dtype=w.dtype, device=w.device)


def are_orthonormal(w: Tensor) -> bool:
    """Whether the rows of ``W`` are orthonormal, as far as half precision can tell."""
    return bool(gram_deviation(w.float()).abs().max() < _FAR)  # NaN is not


def with_fewer_rows(w: Tensor) -> Tensor:
    """``W``, or ``W^T`` unless ``W`` is wide: a view whose rows can be orthonormal."""
    return w if w.shape[-2] < w.shape[-1] else w.mT
