"""Norm, rank and condition of the matrices of a weight, for the records of gradient methods."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from orthotrain.linalg import numerical_rank
from orthotrain.linalg.decompose import singular_values_by_gram
from orthotrain.linalg.rank import rounding_rtol


class Measure(NamedTuple):
    """What a record says of one tensor's matrices.

    Attributes:
        norm: Frobenius norm of all of them.
        condition: Largest over smallest singular value that counts, the worst of the matrices;
            ``None`` where none counts.
        rank: How many count, the fewest of the matrices.
        rtol: The share of the largest from which on one counts.
    """

    norm: float
    condition: float | None
    rank: int
    rtol: float


def measure_matrices(matrices: Tensor, *, difference_from: Tensor | None = None) -> Measure:
    """Measure finite ``(blocks, m, n)``; reads the values, so it waits for an accelerator.

    ``difference_from`` is the weight that they are a difference from, if they are one.
    """
    rtol = rounding_rtol(matrices, difference_from=difference_from)
    s = singular_values_by_gram(matrices)
    rank = numerical_rank(s, rtol=rtol)
    last = s.gather(-1, (rank - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    condition = torch.where(rank > 0, s[..., 0] / torch.where(rank > 0, last, 1.0), torch.inf)
    norm, worst, fewest = torch.stack(
        [torch.linalg.vector_norm(s), condition.amax(), rank.amin().to(s.dtype)]
    ).tolist()
    return Measure(norm, worst if fewest else None, int(fewest), rtol)
