"""Matrices built from a chosen spectrum, so that conditioning is an input of a test."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(m: int, k: int, *, seed: int) -> Tensor:
    """``(m, k)`` float64 with orthonormal columns."""
    a = torch.randn(m, k, generator=generator(seed), dtype=torch.float64)
    return torch.linalg.qr(a).Q


def from_spectrum(s: Sequence[float] | Tensor, m: int, n: int, *, seed: int = 0) -> Tensor:
    """``(m, n)`` float64 with the given singular values; missing ones are zero."""
    values = torch.as_tensor(s, dtype=torch.float64)
    u = orthonormal(m, min(m, n), seed=seed)[:, : len(values)]
    v = orthonormal(n, min(m, n), seed=seed + 1)[:, : len(values)]
    return (u * values) @ v.mT


def log_spectrum(k: int, condition: float) -> Tensor:
    """``k`` values from 1 down to ``1 / condition``, evenly spaced in the logarithm."""
    if k == 1:
        return torch.ones(1, dtype=torch.float64)
    exponents = torch.linspace(0, 1, k, dtype=torch.float64)
    return torch.tensor(1 / condition, dtype=torch.float64) ** exponents


def normal(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def shaken(module: nn.Module, *, size: float, seed: int = 1) -> nn.Module:
    """In float64, with every parameter away from a start that hides it."""
    random = generator(seed)
    with torch.no_grad():
        for p in module.double().parameters():
            p.add_(size * torch.randn(p.shape, generator=random, dtype=torch.float64))
    return module
