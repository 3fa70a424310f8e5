"""Slow float64 twins of whitening and covariance pooling: one group, one image, one sample a loop.

Written from the formulas in the layers' docstrings and from nothing in the package.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def symmetric_power(p: Tensor, power: float) -> Tensor:
    """``sum_i l_i^power u_i u_i^T`` over the eigenpairs of ``p``; zero stays zero."""
    values, vectors = torch.linalg.eigh(p.double())
    result = torch.zeros_like(vectors)
    for value, u in zip(values, vectors.mT, strict=True):
        if value > 0:
            result += value**power * torch.outer(u, u)
    return result


def covariance(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased covariance of ``(n, c)``, one outer product at a time."""
    samples = samples.double()
    mean = samples.sum(0) / len(samples)
    p = torch.zeros(samples.shape[1], samples.shape[1], dtype=torch.float64)
    for row in samples:
        p += torch.outer(row - mean, row - mean)
    return mean, p / len(samples)


def samples_of(x: Tensor) -> Tensor:
    """``(n, C)``: every place of every image is a sample."""
    return x.detach().double().movedim(1, -1).reshape(-1, x.shape[1])


@dataclass
class Whitening:
    """``weight * (P + ridge)^(-1/2) (x - mean) + bias`` for one group after the other."""

    channels: int
    group_size: int
    ridge: float
    momentum: float | None = 0.1

    def __post_init__(self):
        self.weight = torch.ones(self.channels, dtype=torch.float64)
        self.bias = torch.zeros(self.channels, dtype=torch.float64)
        self.running_mean = torch.zeros(self.channels, dtype=torch.float64)
        groups = self.channels // self.group_size
        self.running_covariance = torch.eye(self.group_size, dtype=torch.float64).repeat(
            groups, 1, 1
        )
        self.batches = 0

    def train(self, x: Tensor) -> Tensor:
        self.batches += 1
        share = 1 / self.batches if self.momentum is None else self.momentum
        samples = samples_of(x)
        n = len(samples)
        y = torch.empty_like(samples)
        for g, channels in enumerate(self._groups()):
            mean, p = covariance(samples[:, channels])
            y[:, channels] = self._map(samples[:, channels], mean, p, channels)
            new = (1 - share) * self.running_mean[channels] + share * mean
            self.running_mean[channels] = new
            self.running_covariance[g] = (1 - share) * self.running_covariance[g] + share * (
                p * n / (n - 1)
            )
        return self._shaped(y, x)

    def evaluate(self, x: Tensor) -> Tensor:
        samples = samples_of(x)
        y = torch.empty_like(samples)
        for g, channels in enumerate(self._groups()):
            y[:, channels] = self._map(
                samples[:, channels], self.running_mean[channels], self.running_covariance[g],
                channels,
            )  # fmt: skip
        return self._shaped(y, x)

    def _groups(self) -> list[slice]:
        return [slice(i, i + self.group_size) for i in range(0, self.channels, self.group_size)]

    def _map(self, samples: Tensor, mean: Tensor, p: Tensor, channels: slice) -> Tensor:
        z = symmetric_power(p + self.ridge * torch.eye(len(p), dtype=torch.float64), -0.5)
        rows = [self.weight[channels] * (z @ (row - mean)) + self.bias[channels] for row in samples]
        return torch.stack(rows)

    def _shaped(self, y: Tensor, x: Tensor) -> Tensor:
        return y.reshape(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)


def covariance_pool(
    x: Tensor, *, ridge: float = 0.0, relative_ridge: float = 0.0, shrinkage: float = 0.0
) -> Tensor:
    """Upper triangles, row by row, of the square roots of the images' channel covariances."""
    results = []
    for image in x.detach().double():
        _, p = covariance(image.flatten(1).mT)
        d = len(p)
        unit = torch.eye(d, dtype=torch.float64)
        p = (1 - shrinkage) * p + shrinkage * p.trace() / d * unit
        p = p + (ridge + relative_ridge * p.trace() / d) * unit
        root = symmetric_power(p, 0.5)
        results.append(torch.stack([root[i, j] for i in range(d) for j in range(i, d)]))
    return torch.stack(results)
