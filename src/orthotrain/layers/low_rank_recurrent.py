"""Low-rank LSTM, GRU and RNN, and their cells: torch's own kernels on weights that are multiplied.

``weight_ih_l0`` is held as ``ih_l0_pair``, or as ``ih_l0_u``, ``ih_l0_core`` and ``ih_l0_vh``; a
cell's ``weight_ih`` as ``ih_pair``. The gates of a weight share one factorization. Each call
multiplies the weights out for all time steps at once, so a layer stores less and is not faster.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import nn

from orthotrain._doors import checked
from orthotrain.layers._built import become_
from orthotrain.layers._factors import (
    LowRankModule,
    is_factored,
    weight_parameter,
)
from orthotrain.layers._forms import register_low_rank
from orthotrain.layers._tracing import leaf
from orthotrain.linalg._inputs import without_autocast
from orthotrain.linalg.matrices import WeightLayout

_GATES = {"LSTM": 4, "GRU": 3}


class _LowRankRecurrent(LowRankModule):
    """What layers and cells share; ``weight_ih_l0`` stays readable, multiplied out."""

    @classmethod
    def weights_of(cls, module: nn.Module) -> tuple[str, ...]:
        """``weight_ih_l0``, ``weight_hh_l0`` and so on; of a cell ``weight_ih``, ``weight_hh``."""
        if isinstance(module, nn.RNNBase):
            return tuple(n for n in module._flat_weights_names if n.startswith("weight"))
        return ("weight_ih", "weight_hh")

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """One block for all gates, ``gates * hidden`` by the width of what enters."""
        return (WeightLayout.of_blocks(_shape(module, weight)),)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("weight_") and name in self.weights_of(self) and is_factored(self, name):
            held = weight_parameter(self, name)
            assert held is not None
            with nullcontext() if held.is_meta else without_autocast(held):
                return self.materialized(name)
        return super().__getattr__(name)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch's own layer or cell, same arguments and results."""
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input, hx)
        return super().forward(input, hx)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh weights as torch does; of those in factors, the part inside the basis."""
        bound = self.hidden_size**-0.5
        for name in self.weights_of(self):
            if is_factored(self, name):
                fresh = self.materialized(name).uniform_(-bound, bound)
                self.project_(fresh, name)
        for name, parameter in self._parameters.items():
            if parameter is not None and name.startswith(("weight_", "bias_")):
                parameter.uniform_(-bound, bound)

    def extra_repr(self) -> str:
        """The dense layer's description, and the rank of each weight in factors."""
        held = (name for name in self.weights_of(self) if is_factored(self, name))
        ranks = ", ".join(f"{name}: {self.rank_of(name)}" for name in held)
        return f"{super().extra_repr()}, rank=({ranks})"


class _LowRankLayer(_LowRankRecurrent, nn.RNNBase):
    """A layer of several steps: torch hands one flat list of weights to its kernel."""

    @property
    def _flat_weights(self) -> list[Any | None]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, _: list[Any | None]) -> None:
        """Torch keeps its list up to date; here it is made for each call."""

    def _update_flat_weights(self) -> None:
        """There is no list that could be out of date."""

    def flatten_parameters(self) -> None:
        """Weights that are made for each call cannot lie in one piece of memory."""


def _shape(module: nn.Module, weight: str) -> tuple[int, int]:
    """Shape of a dense weight, from the sizes that the module knows."""
    if isinstance(module, nn.RNNCellBase):
        rows = next((g for n, g in _GATES.items() if type(module).__name__.endswith(f"{n}Cell")), 1)
        columns = module.input_size if weight == "weight_ih" else module.hidden_size
        return rows * module.hidden_size, columns
    assert isinstance(module, nn.RNNBase)
    if weight.startswith("weight_hr"):
        return module.proj_size, module.hidden_size
    out = module.proj_size or module.hidden_size
    rows = _GATES.get(module.mode, 1) * module.hidden_size
    if weight.startswith("weight_hh"):
        return rows, out
    both = 2 if module.bidirectional else 1
    first = weight.removesuffix("_reverse").endswith("_l0")
    return rows, module.input_size if first else both * out


@checked
@register_low_rank("torch.nn.modules.rnn.LSTM")
class LowRankLSTM(_LowRankLayer, nn.LSTM):
    """Torch's LSTM with its weights in factors; cut on request, ``compress(also=["lstm"])``.

    Args:
        args: As ``nn.LSTM`` takes them.
        rank: ``k`` of each weight; None is full rank.
        kwargs: As ``nn.LSTM`` takes them.

    Raises:
        RankError: ``rank`` is out of range for one of the weights.

    Example:
        >>> layer = LowRankLSTM(8, 6, rank=2)
        >>> layer(torch.zeros(5, 3, 8))[0].shape, layer.weight_ih_l0.shape, layer.ih_l0_core.shape
        (torch.Size([5, 3, 6]), torch.Size([24, 8]), torch.Size([2, 2]))
    """

    on_request: ClassVar[str] = "lstm"

    def __init__(self, *args: Any, rank: int | None = None, **kwargs: Any) -> None:
        become_(self, lambda: nn.LSTM(*args, **kwargs), rank)


@checked
@register_low_rank("torch.nn.modules.rnn.GRU")
class LowRankGRU(_LowRankLayer, nn.GRU):
    """Torch's GRU with its weights in factors; see ``LowRankLSTM``."""

    on_request: ClassVar[str] = "gru"

    def __init__(self, *args: Any, rank: int | None = None, **kwargs: Any) -> None:
        become_(self, lambda: nn.GRU(*args, **kwargs), rank)


@checked
@register_low_rank("torch.nn.modules.rnn.RNN")
class LowRankRNN(_LowRankLayer, nn.RNN):
    """Torch's RNN with its weights in factors; see ``LowRankLSTM``."""

    on_request: ClassVar[str] = "rnn"

    def __init__(self, *args: Any, rank: int | None = None, **kwargs: Any) -> None:
        become_(self, lambda: nn.RNN(*args, **kwargs), rank)


@checked
@register_low_rank("torch.nn.modules.rnn.LSTMCell")
class LowRankLSTMCell(_LowRankRecurrent, nn.LSTMCell):
    """One step of an LSTM with its weights in factors; see ``LowRankLSTM``."""

    on_request: ClassVar[str] = "lstm"

    def __init__(self, *args: Any, rank: int | None = None, **kwargs: Any) -> None:
        become_(self, lambda: nn.LSTMCell(*args, **kwargs), rank)


@checked
@register_low_rank("torch.nn.modules.rnn.GRUCell")
class LowRankGRUCell(_LowRankRecurrent, nn.GRUCell):
    """One step of a GRU with its weights in factors; see ``LowRankLSTM``."""

    on_request: ClassVar[str] = "gru"

    def __init__(self, *args: Any, rank: int | None = None, **kwargs: Any) -> None:
        become_(self, lambda: nn.GRUCell(*args, **kwargs), rank)


@checked
@register_low_rank("torch.nn.modules.rnn.RNNCell")
class LowRankRNNCell(_LowRankRecurrent, nn.RNNCell):
    """One step of an RNN with its weights in factors; see ``LowRankLSTM``."""

    on_request: ClassVar[str] = "rnn"

    def __init__(self, *args: Any, rank: int | None = None, **kwargs: Any) -> None:
        become_(self, lambda: nn.RNNCell(*args, **kwargs), rank)
