"""Attributes of a low-rank layer that are computed when they are read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orthotrain.layers._factor_names import factor_names
from orthotrain.layers._factors import LowRankModule, holds_pair, is_factored


def readable(weight: str) -> Any:
    """A property that reads a weight as torch's own code does: dense, materialized, or None.

    Materialized on every access; writing into that tensor changes nothing.
    """

    def read(self: LowRankModule) -> Tensor | None:
        if is_factored(self, weight):
            return self.materialized(weight)
        return self._parameters[weight]

    return property(read, doc=f"``{weight}`` of torch's layer, materialized where it is factored.")


def readable_factor(index: int, weight: str = "weight") -> Any:
    """A property that reads ``u``, ``core`` or ``vh`` (by ``index``): what is held, or computed.

    Replicas of ``DataParallel`` and layers inside FSDP1 have a plain tensor in the place of their
    Parameter, which is written and deleted like an attribute.
    """
    name = factor_names(weight)[index]

    def read(self: LowRankModule) -> Tensor | None:
        if name in self._buffers:
            return self._buffers[name]
        if name in self._parameters:
            return self._parameters[name]
        if name in self.__dict__:
            held: Tensor = self.__dict__[name]
            return held
        if not holds_pair(self, weight):
            raise AttributeError(f"{type(self).__name__} holds no {name!r}: {weight} is dense")
        return self.factors(weight)[index]

    def write(self: LowRankModule, value: Tensor) -> None:
        if factor_names(weight)[0] not in self._buffers:
            raise AttributeError(f"{type(self).__name__} computes {name!r} when it is read")
        self.__dict__[name] = value

    def delete(self: LowRankModule) -> None:
        self.__dict__.pop(name)

    return property(read, write, delete, f"``{name}``: held, or computed from a pair when read.")
