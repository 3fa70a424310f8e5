"""Second moments of a layer's inputs and output gradients, pass by pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orthotrain.linalg import working_dtype
from orthotrain.linalg.channel_covariance import channel_covariance


@dataclass
class Moments:
    """Second moments of one layer, or of one projection of attention.

    Attributes:
        a: ``(blocks, n, n)``, mean of ``x x^T`` over the samples of the inputs; None before any.
        a_samples: How many samples that is.
        b: ``(blocks, m, m)``, sum of ``g g^T`` over the samples of a pass, scaled and added up
            over passes; None before any.
    """

    a: Tensor | None = None
    a_samples: int = 0
    b: Tensor | None = None


@dataclass
class Pass:
    """What one pass has added so far: sums over samples."""

    a: Tensor | None = None
    b: Tensor | None = None
    samples: int = 0

    def add(self, x: Tensor, g: Tensor | None, count: int, blocks: int) -> None:
        """Rows ``(s, blocks * n)`` of inputs and of gradients, which stand for ``count``."""
        a = _second_moment(x, blocks) * count
        self.a = a if self.a is None else self.a + a
        if g is not None:
            b = _second_moment(g, blocks) * count
            self.b = b if self.b is None else self.b + b
        self.samples += count

    def end(self, moments: Moments, scale: float | Tensor) -> None:
        """Add the pass to what is known."""
        if self.a is not None:
            total = moments.a_samples + self.samples
            seen = self.a / self.samples
            share = self.samples / total
            moments.a = seen if moments.a is None else torch.lerp(moments.a, seen, share)
            moments.a_samples = total
        if self.b is not None:
            seen = self.b * scale
            moments.b = seen if moments.b is None else moments.b + seen


def _second_moment(x: Tensor, blocks: int) -> Tensor:
    with torch.autocast(device_type=x.device.type, enabled=False):
        return channel_covariance(x, groups=blocks, centred=False, dtype=working_dtype(x))
