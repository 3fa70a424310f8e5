"""Covariance of channels, accurate where the mean is large."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from orthotrain.linalg.decompose import widest_dtype

# Numbers held in float64 at once: on a CPU what stays in its cache, elsewhere few launches for at
# most 128 MiB. Processor time on a CPU was the same within its spread from 2**16 to 2**20.
_CHUNK_ON_CPU: Final = 2**17
_CHUNK: Final = 2**24


def channel_covariance(x: Tensor, *, groups: int = 1) -> Tensor:
    """Biased covariance of the channels over batch and positions, ``(groups, c, c)``.

    Some samples at a time, so that no copy of the whole input is made. No derivative.

    Args:
        x: ``(n, channels, *)`` with at least one sample, in any memory format.
        groups: Channels are cut into this many neighbouring groups.
    """
    channels, dtype = x.shape[1], widest_dtype(x.device)
    x = x.T.unsqueeze(0) if x.ndim == 2 else x.flatten(2)
    samples, size = x.numel() // channels, channels // groups
    shift = x.new_zeros((channels, 1, 1), dtype=dtype)
    sums = x.new_zeros((groups, size, 1), dtype=dtype)
    products = x.new_zeros((groups, size, size), dtype=dtype)
    most = _CHUNK_ON_CPU if x.device.type == "cpu" else _CHUNK
    for i, part in enumerate(torch.split(x, max(1, most * len(x) // x.numel()))):
        moved = x.new_empty((channels, len(part), part.shape[-1]), dtype=dtype)
        moved.copy_(part.transpose(0, 1))
        if i == 0:
            # Near the mean of all, so that what is taken off at the end is no larger than what
            # stays; a pass for the mean itself would cost more than all the rest.
            shift = moved.mean(dim=(1, 2), keepdim=True)
        rows = moved.sub_(shift).view(groups, size, -1)
        sums += rows.sum(dim=-1, keepdim=True)
        products.baddbmm_(rows, rows.mT)
    mean = sums / samples
    covariance: Tensor = products / samples - mean @ mean.mT
    return (covariance + covariance.mT) / 2
