"""Recurrent layers that show what enters and leaves each of their weights, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

#: Called with the name of a weight, what it multiplies and what that gives, bias included.
Observer = Callable[[str, Tensor, Tensor], None]

State = tuple[Tensor, ...]


@contextmanager
def recurrence_observed(module: nn.Module, observer: Observer) -> Iterator[None]:
    """Show the products of a recurrent layer or cell to ``observer`` until the context ends.

    Torch computes them in one function, where no hook reaches. Here each step is written out, as
    in evaluation mode: without dropout between layers.
    """
    step, own = _Steps(module, observer), module.__dict__.get("forward")
    module.__dict__["forward"] = step.cell if isinstance(module, nn.RNNCellBase) else step.layer
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if own is not None:  # another library put it there
            module.__dict__["forward"] = own


class _Steps:
    """The forward pass of one recurrent layer, in elementary operations."""

    def __init__(self, module: nn.Module, observer: Observer) -> None:
        self._module: Any = module
        self._observe = observer
        self._kind = type(module).__name__.removeprefix("LowRank").removesuffix("Cell")
        self._tanh = getattr(module, "nonlinearity", "tanh") == "tanh"

    def cell(self, x: Tensor, hx: Any = None) -> Any:
        """As a cell's ``forward``."""
        single, lstm = x.ndim == 1, self._kind == "LSTM"
        state = None if hx is None else tuple(hx) if lstm else (hx,)
        if single:
            x = x[None]
            state = None if state is None else tuple(t[None] for t in state)
        if state is None:
            zero = x.new_zeros(len(x), self._module.hidden_size)
            state = (zero, zero)[: 1 + lstm]
        state = self._step(self._times("weight_ih", x), state, "")
        state = tuple(t[0] for t in state) if single else state
        return state if lstm else state[0]

    def layer(self, x: Any, hx: Any = None) -> Any:
        """As a layer's ``forward``."""
        module: Any = self._module
        lengths = None
        packed = x if isinstance(x, PackedSequence) else None
        if packed is not None:
            x, lengths = pad_packed_sequence(packed)
        elif batched := x.ndim == 3:
            x = x.transpose(0, 1) if module.batch_first else x
        else:
            x = x[:, None]
        first = self._first_state(x, hx, batched=packed is not None or batched)
        directions, last = 1 + module.bidirectional, []
        y: Any
        for depth in range(module.num_layers):
            outputs = []
            for direction in range(directions):
                at = depth * directions + direction
                state = tuple(t[at] for t in first)
                name = f"_l{depth}{'_reverse' * direction}"
                y, state = self._run(x, state, name, lengths, backwards=bool(direction))
                outputs.append(y)
                last.append(state)
            x = torch.cat(outputs, -1)
        final = tuple(torch.stack(each) for each in zip(*last, strict=True))
        if packed is not None:
            assert lengths is not None
            sizes, order = packed.batch_sizes, packed.sorted_indices
            order = torch.arange(len(lengths), device=x.device) if order is None else order
            rows = [x[t, order[:size]] for t, size in enumerate(sizes.tolist())]
            y = PackedSequence(
                torch.cat(rows), sizes, packed.sorted_indices, packed.unsorted_indices
            )
        elif batched:
            y = x.transpose(0, 1) if module.batch_first else x
        else:
            y, final = x[:, 0], tuple(t[:, 0] for t in final)
        return y, final if self._kind == "LSTM" else final[0]

    def _first_state(self, x: Tensor, hx: Any, *, batched: bool) -> State:
        module: Any = self._module
        lstm = self._kind == "LSTM"
        if hx is not None:
            state = tuple(hx) if lstm else (hx,)
            return state if batched else tuple(t[:, None] for t in state)
        rows = module.num_layers * (1 + module.bidirectional)
        widths = (module.proj_size or module.hidden_size, module.hidden_size)
        return tuple(x.new_zeros(rows, x.shape[1], w) for w in widths[: 1 + lstm])

    def _run(
        self, x: Tensor, state: State, name: str, lengths: Tensor | None, *, backwards: bool
    ) -> tuple[Tensor, State]:
        """One direction of one layer over ``(time, batch, n)``."""
        if lengths is None:
            entering = self._times(f"weight_ih{name}", x)
        else:  # padding enters no layer
            within = (torch.arange(len(x))[:, None] < lengths).to(x.device)
            rows = self._times(f"weight_ih{name}", x[within])
            entering = rows.new_zeros(*x.shape[:2], rows.shape[-1]).masked_scatter(
                within[..., None], rows
            )
        outputs: list[Tensor] = [x.new_zeros(0)] * len(x)
        for t in reversed(range(len(x))) if backwards else range(len(x)):
            if lengths is None:
                state = self._step(entering[t], state, name)
                outputs[t] = state[0]
                continue
            inside = (lengths > t).to(x.device)
            some = self._step(entering[t][inside], tuple(s[inside] for s in state), name)
            state = tuple(s.index_put((inside,), n) for s, n in zip(state, some, strict=True))
            outputs[t] = state[0] * inside[:, None]
        return torch.stack(outputs), state

    def _step(self, entering: Tensor, state: State, name: str) -> State:
        """The state after one step, from what its input gives the gates."""
        recurrent = self._times(f"weight_hh{name}", state[0])
        if self._kind == "LSTM":
            i, f, g, o = (entering + recurrent).chunk(4, -1)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            narrow = f"weight_hr{name}"
            return (self._times(narrow, h) if hasattr(self._module, narrow) else h, c)
        if self._kind == "GRU":
            (r, z, n), (r_h, z_h, n_h) = entering.chunk(3, -1), recurrent.chunk(3, -1)
            z = (z + z_h).sigmoid()
            n = (n + (r + r_h).sigmoid() * n_h).tanh()
            return ((1 - z) * n + z * state[0],)
        both = entering + recurrent
        return (both.tanh() if self._tanh else both.relu(),)

    def _times(self, weight: str, x: Tensor) -> Tensor:
        bias = getattr(self._module, weight.replace("weight", "bias", 1), None)
        y = F.linear(x, getattr(self._module, weight), bias)
        self._observe(weight, x, y)
        return y
