"""Slow float64 twin of ``orthotrain.linalg.metric_svd``, by symmetric roots and no Cholesky."""

import torch
from torch import Tensor


def metric_distance(d: Tensor, a: Tensor, b: Tensor) -> float:
    """``tr(b d a d^T)``, entry by entry."""
    m, n = d.shape
    total = 0.0
    for i in range(m):
        for j in range(m):
            for p in range(n):
                for q in range(n):
                    total += float(b[i, j] * d[j, p] * a[p, q] * d[i, q])
    return total


def with_ridge(spd: Tensor, ridge: float) -> Tensor:
    """The matrix with a share of its mean eigenvalue on the diagonal."""
    spd = spd.double()
    mean = torch.linalg.eigvalsh(spd).mean()
    return spd + ridge * mean * torch.eye(len(spd), dtype=torch.float64)


def root(spd: Tensor, power: float) -> Tensor:
    """A power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(spd)
    return vectors @ torch.diag(values**power) @ vectors.mT


def singular_values(w: Tensor, a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """Singular values of ``b^(1/2) w a^(1/2)``."""
    a, b = with_ridge(a, ridge), with_ridge(b, ridge)
    return torch.linalg.svdvals(root(b, 0.5) @ w.double() @ root(a, 0.5))


def nearest(w: Tensor, a: Tensor, b: Tensor, ridge: float, rank: int) -> Tensor:
    """The nearest matrix of a rank in the metric: truncate between roots, then undo them."""
    a, b = with_ridge(a, ridge), with_ridge(b, ridge)
    u, s, vh = torch.linalg.svd(root(b, 0.5) @ w.double() @ root(a, 0.5), full_matrices=False)
    cut = u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
    return root(b, -0.5) @ cut @ root(a, -0.5)
