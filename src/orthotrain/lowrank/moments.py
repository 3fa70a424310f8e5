"""Second moments of a layer's inputs and output gradients, pass by pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from orthotrain.linalg import working_dtype

# Held in float64 at once.
_ROWS_AT_ONCE: Final = 1024


@dataclass
class Moments:
    """Second moments of one layer, or of one projection of attention.

    Attributes:
        a: ``(blocks, n, n)``, mean of ``x x^T`` over the samples of the inputs; None before any.
            Of an embedding, whose inputs are one-hot, its diagonal ``(1, n)``.
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

    def add(self, x: Tensor, g: Tensor | None, count: int, blocks: int, *, words: int = 0) -> None:
        """Rows ``(s, blocks * n)`` of inputs and of gradients, which stand for ``count``.

        With ``words`` the inputs are integers ``(s,)`` below that number, of an embedding.
        """
        each = count / len(x)
        if words:
            counts = torch.bincount(x, minlength=words)[None] * each
            self.a = counts if self.a is None else self.a + counts
        else:
            self.a = _added(self.a, x, blocks, each)
        if g is not None:
            self.b = _added(self.b, g, blocks, each)
        self.samples += count

    def end(self, moments: Moments, scale: float | Tensor) -> None:
        """Add the pass to what is known; its sums are used up."""
        if self.a is not None:
            total = moments.a_samples + self.samples
            seen = self.a.div_(self.samples)
            share = self.samples / total
            moments.a = seen if moments.a is None else moments.a.lerp_(seen, share)
            moments.a_samples = total
        if self.b is not None:
            seen = self.b.mul_(scale)
            moments.b = seen if moments.b is None else moments.b.add_(seen)


def _added(total: Tensor | None, x: Tensor, blocks: int, each: float) -> Tensor:
    """``total`` and ``each x x^T`` of every row ``(blocks * n,)``, as ``(blocks, n, n)``."""
    rows, dtype = x.view(len(x), blocks, -1).transpose(0, 1), working_dtype(x)
    if total is None:
        total = x.new_zeros((blocks, rows.shape[-1], rows.shape[-1]), dtype=dtype)
    with torch.autocast(device_type=x.device.type, enabled=False):
        for some in torch.split(rows, _ROWS_AT_ONCE, dim=1):
            some = some.to(dtype)
            # Not in place by name: torch counts the operations of this form alone.
            torch.baddbmm(total, some.mT, some, alpha=each, out=total)
    return total
