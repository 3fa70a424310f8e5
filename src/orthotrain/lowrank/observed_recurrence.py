"""Recurrent layers that show what enters and leaves each of their weights, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

#: Called with the name of a weight, what it multiplies, and a tensor of the shape of what that
#: gives, whose gradient is that of what it gives.
Observer = Callable[[str, Tensor, Tensor], None]

State = tuple[Tensor, ...]
#: The product of the weight of a name with a state.
Times = Callable[[str, Tensor], Tensor]


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
        state = self._step(self._times("weight_ih", x), state, "", self._times)
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
        counts = [x.shape[1]] * len(x)
        if lengths is not None:
            counts = [int((lengths > t).sum()) for t in range(len(x))]
        steps = _AllSteps(self._module, counts)
        for t in reversed(range(len(x))) if backwards else range(len(x)):
            if lengths is None:
                state = self._step(entering[t], state, name, partial(steps.times, t))
                outputs[t] = state[0]
                continue
            inside = (lengths > t).to(x.device)
            before = tuple(s[inside] for s in state)
            some = self._step(entering[t][inside], before, name, partial(steps.times, t))
            state = tuple(s.index_put((inside,), n) for s, n in zip(state, some, strict=True))
            outputs[t] = state[0] * inside[:, None]
        steps.show(self._observe)
        return torch.stack(outputs), state

    def _step(self, entering: Tensor, state: State, name: str, times: Times) -> State:
        """The state after one step, from what its input gives the gates."""
        recurrent = times(f"weight_hh{name}", state[0])
        if self._kind == "LSTM":
            i, f, g, o = (entering + recurrent).chunk(4, -1)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            narrow = f"weight_hr{name}"
            return (times(narrow, h) if hasattr(self._module, narrow) else h, c)
        if self._kind == "GRU":
            (r, z, n), (r_h, z_h, n_h) = entering.chunk(3, -1), recurrent.chunk(3, -1)
            z = (z + z_h).sigmoid()
            n = (n + (r + r_h).sigmoid() * n_h).tanh()
            return ((1 - z) * n + z * state[0],)
        both = entering + recurrent
        return (both.tanh() if self._tanh else both.relu(),)

    def _times(self, weight: str, x: Tensor) -> Tensor:
        y = _product(self._module, weight, x)
        self._observe(weight, x, y)
        return y


class _AllSteps:
    """Products with the state, gathered over all steps, so that each weight is shown once.

    To what a weight gives zeros are added, a part of one tensor at each step: its gradient is that
    of all steps.
    """

    def __init__(self, module: nn.Module, counts: list[int]) -> None:
        self._module, self._counts = module, counts
        self._zeros: dict[str, tuple[Tensor, Sequence[Tensor]]] = {}
        self._given: dict[str, dict[int, Tensor]] = {}

    def times(self, t: int, weight: str, x: Tensor) -> Tensor:
        y = _product(self._module, weight, x)
        if weight not in self._zeros:
            zeros = y.new_zeros(sum(self._counts), y.shape[-1])
            zeros.requires_grad_(torch.is_grad_enabled())
            self._zeros[weight] = zeros, torch.split(zeros, self._counts)
        self._given.setdefault(weight, {})[t] = x
        return y + self._zeros[weight][1][t]

    def show(self, observe: Observer) -> None:
        for weight, given in self._given.items():
            observe(weight, torch.cat([given[t] for t in sorted(given)]), self._zeros[weight][0])


def _product(module: nn.Module, weight: str, x: Tensor) -> Tensor:
    bias = getattr(module, weight.replace("weight", "bias", 1), None)
    return F.linear(x, getattr(module, weight), bias)
