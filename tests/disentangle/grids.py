"""Factor grids for the tests: every point once, and a data set whose images are the factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.matrices import generator


def grid(*sizes: int, copies: int = 1) -> Tensor:
    """``(copies * prod(sizes), f)`` int64: every combination of values, last factor fastest."""
    points = torch.cartesian_prod(*[torch.arange(size) for size in sizes])
    return points.view(-1, len(sizes)).repeat(copies, 1)


def drawn(n: int, *sizes: int, seed: int = 0) -> Tensor:
    """``(n, f)`` int64, uniform and independent."""
    random = generator(seed)
    columns = [torch.randint(size, (n,), generator=random) for size in sizes]
    return torch.stack(columns, dim=1)


def noise(n: int, d: int, *, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


class Grid:
    """A data set of ``(f, 1, 1)`` images that hold their factors; keeps what it was asked for."""

    def __init__(self, *sizes: int):
        self.factor_sizes = tuple(sizes)
        self.points = grid(*sizes)
        self.asked: list[Tensor] = []

    def index_of(self, factors: Tensor) -> Tensor:
        self.asked.append(factors)
        index = torch.zeros(len(factors), dtype=torch.int64)
        for column, size in zip(factors.T, self.factor_sizes, strict=True):
            index = index * size + column
        return index

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        factors = self.points[index]
        return factors.float()[:, :, None, None], factors


def identity(images: Tensor) -> Tensor:
    return images.flatten(1)


def mixed(matrix: Sequence[Sequence[float]] | Tensor):
    """An encoder: the factors times ``matrix``, ``(f, d)``."""
    return lambda images: images.flatten(1) @ torch.as_tensor(matrix, dtype=images.dtype)
