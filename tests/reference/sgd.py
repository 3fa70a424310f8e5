"""Stochastic gradient descent as it is written in the papers, one line a formula, on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def sgd_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: list[Tensor | None],
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """One step, in place. Sutskever et al. (2013) with torch's placing of the learning rate."""
    for i, (w, gradient) in enumerate(zip(weights, gradients, strict=True)):
        g = gradient + weight_decay * w
        if momentum:
            v = velocities[i]
            v = g.clone() if v is None else momentum * v + g
            velocities[i] = v
            g = g + momentum * v if nesterov else v
        w -= lr * g
