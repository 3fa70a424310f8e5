"""The base of layers with one weight that is always held in factors, and how they are copied."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from orthotrain.errors import ConfigError
from orthotrain.layers._cost import Bases
from orthotrain.layers._factors import LowRankModule, factorize_, low_rank_class_of
from orthotrain.layers._readable import readable, readable_factor

# Not Self: the runtime type check of the tests cannot resolve that in a class method.
Layer = TypeVar("Layer", bound=LowRankModule)


class SingleWeight(LowRankModule):
    """A layer with one weight, named ``weight``, that is always held in factors."""

    u: Tensor = readable_factor(0)
    core: Tensor = readable_factor(1)
    vh: Tensor = readable_factor(2)
    weight: Tensor = readable("weight")
    pair: nn.Parameter  # with trained bases only

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw a fresh dense weight and bias as torch does; keep its part inside the basis.

        After ``to_empty`` there is none: the best approximation of this rank is kept.
        """
        fresh = self._fresh()
        weight, bias = fresh._parameters["weight"], self._parameters.get("bias")
        assert weight is not None
        self.project_(weight)
        if bias is not None:
            bias.copy_(fresh.get_parameter("bias"))

    def _fresh(self) -> nn.Module:
        raise TypeError(f"{type(self).__name__} must define _fresh(), which makes its dense layer")

    def extra_repr(self) -> str:
        """The dense layer's description, and the rank."""
        return f"{super().extra_repr()}, rank={self.rank}"


def copied(cls: type[Layer], dense: nn.Module, rank: int | None, bases: Bases) -> Layer:
    """A low-rank layer out of a copy of a dense one."""
    known = low_rank_class_of(dense)
    if known is None or isinstance(dense, LowRankModule) or not issubclass(cls, known):
        raise ConfigError(
            f"{cls.__name__} needs the plain torch layer that it replaces, got a "
            f"{type(dense).__name__}, which computes something else; make a low-rank layer dense "
            "first with orthotrain.to_dense"
        )
    layer = copy.deepcopy(dense)
    factorize_(layer, "weight", cls, rank=rank, bases=bases)
    assert isinstance(layer, cls)
    return layer
