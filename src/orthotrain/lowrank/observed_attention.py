"""Attention that shows what enters and leaves each of its input projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
    is called there without its hooks, too. A copy or a pickle is of the class that it stands for.
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

    def __reduce_ex__(self, protocol: Any) -> Any:
        state, kind = dict(self.__dict__), _stands_for(self)
        del state["_observer"]
        if kind is not LowRankMultiheadAttention:
            del state["_dense_class"]
        return object.__new__, (kind,), state


def _stands_for(module: ObservedAttention) -> type[nn.Module]:
    """The class of a module without its observer: low-rank where it holds factors."""
    if any(is_factored(module, weight) for weight in module.weights_of(module)):
        return LowRankMultiheadAttention
    dense: type[nn.Module] = module.__dict__["_dense_class"]
    return dense


@contextmanager
def attention_observed(module: nn.Module, observer: Observer) -> Iterator[None]:
    """Show the projections of an attention layer to ``observer`` until the context ends.

    The layer may be loaded, and change its form, in between.
    """
    module.__dict__.setdefault("_dense_class", module.__class__)
    module.__dict__["_observer"] = observer
    module.__class__ = ObservedAttention
    try:
        with _without_fast_path():
            yield
    finally:
        if isinstance(module, ObservedAttention):
            kind = _stands_for(module)
            module.__class__ = kind  # type: ignore[assignment]
            if kind is not LowRankMultiheadAttention:
                module.__dict__.pop("_dense_class", None)
        module.__dict__.pop("_observer", None)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Torch's attention without its one fused call, whose parts are not seen; may overlap."""
    global _observed, _fast_path
    if _observed == 0:
        _fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
    _observed += 1
    try:
        yield
    finally:
        _observed -= 1
        if _observed == 0:
            torch.backends.mha.set_fastpath_enabled(_fast_path)


_observed, _fast_path = 0, True  # layers that are observed now; the setting before the first
