"""Attention that shows what enters and leaves each of its input projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.layers import LowRankMultiheadAttention
from orthotrain.layers._factors import is_factored

#: Called with the number of the projection (query, key, value), its input and its output.
Observer = Callable[[int, Tensor, Tensor], None]


class ObservedAttention(LowRankMultiheadAttention):
    """``nn.MultiheadAttention``, dense or low-rank, whose projections are seen one by one.

    Torch computes the dense layer in one function, where no hook reaches; its output projection
    is called there without its hooks, too.
    """

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        packed = self.in_proj_weight
        if packed is None or is_factored(self, "in_proj_weight"):
            outputs = super()._project(query, key, value)
        else:
            bias = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            parts = zip((query, key, value), packed.chunk(3), bias, strict=True)
            outputs = tuple(F.linear(x, weight, b) for x, weight, b in parts)
        observe: Observer = self.__dict__["_observer"]
        for part, (x, y) in enumerate(zip((query, key, value), outputs, strict=True)):
            observe(part, x, y)
        return outputs


@contextmanager
def attention_observed(module: nn.Module, observer: Observer) -> Iterator[None]:
    """Show the projections of an attention layer to ``observer`` until the context ends."""
    fast, kind = torch.backends.mha.get_fastpath_enabled(), module.__class__
    torch.backends.mha.set_fastpath_enabled(False)  # one fused call, whose parts are not seen
    module.__dict__["_observer"] = observer
    module.__class__ = ObservedAttention
    try:
        yield
    finally:
        module.__class__ = kind
        del module.__dict__["_observer"]
        torch.backends.mha.set_fastpath_enabled(fast)
