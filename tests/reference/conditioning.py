"""Slow float64 twins of what the condition monitor reads: one matrix, one loop, one formula."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Readings(NamedTuple):
    rank: int
    on_range: float
    with_ridge: float
    naive: float
    largest: float
    norm: float
    ridge: float


def covariance(vectors: Tensor) -> Tensor:
    """Biased covariance of the rows of ``(samples, n)``, one outer product a sample."""
    rows = vectors.double()
    mean = torch.zeros_like(rows[0])
    for row in rows:
        mean = mean + row / len(rows)
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for row in rows:
        total = total + torch.outer(row - mean, row - mean) / len(rows)
    return total


def readings(values: Tensor, *, rtol: float, ridge: float = 0.0, relative: float = 0.0) -> Readings:
    """Of a spectrum in any order, as the definitions say, without a matrix."""
    s = sorted((float(v) for v in values), reverse=True)
    counted = [v for v in s if v > 0 and v >= rtol * s[0]]
    ridge = ridge + relative * math.fsum(s) / len(s)
    return Readings(
        rank=len(counted),
        on_range=s[0] / counted[-1] if counted else math.inf,
        with_ridge=(s[0] + ridge) / (s[-1] + ridge) if s[-1] + ridge > 0 else math.inf,
        naive=s[0] / s[-1] if s[-1] > 0 else math.inf,
        largest=s[0],
        norm=math.sqrt(math.fsum(v * v for v in s)),
        ridge=ridge,
    )
