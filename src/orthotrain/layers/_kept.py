"""Tensors made of weights without gradients, kept for as long as the weights do not change.

What is kept is made again when torch has counted a change of a weight, when its memory, shape or
dtype is another, or when one of some 64 numbers spread over it is another. The last sees most of
what torch does not count: steps of fused optimizers, and what is written through ``.data``. On an
accelerator reading these numbers waits for the device, once per call.

In a compiled graph the look-up is one node, so a graph keeps what eager code keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from orthotrain.layers._tracing import exporting
from orthotrain.linalg._inputs import plain

_SAMPLE = 64
_WeakStorage: Callable[..., Any] = StorageWeakRef
# Plain registration: torch's decorator for operators imports the compiler.
_OPERATORS: Any = torch.library.Library("orthotrain", "FRAGMENT")  # type: ignore[no-untyped-call]

_Recipe = Callable[[tuple[Tensor, ...], tuple[int, ...]], tuple[Tensor, ...]]


class _Entry(NamedTuple):
    """What was made, of which state of which memory."""

    storages: tuple[Any, ...]
    state: tuple[Hashable, ...]
    made: tuple[Tensor, ...]


# Beside the modules, not in them: a copied, moved or saved module never carries it along.
_ENTRIES: dict[Hashable, _Entry] = {}


class Kept:
    """A function of weights that is called without gradients, and once for each of their states.

    Args:
        name: Of the node in compiled graphs, ``orthotrain::name``.
        make: From the weights and some whole numbers to tensors; nothing else may matter.
        like: Contiguous tensors of the shapes and dtypes that ``make`` returns, of any values.
    """

    def __init__(self, name: str, make: _Recipe, like: _Recipe) -> None:
        self._name, self._make = name, make
        _OPERATORS.define(f"{name}(Tensor[] held, int[] settings) -> Tensor[]")

        def node(held: list[Tensor], settings: list[int]) -> list[Tensor]:
            # A graph may write to what a node returns.
            return [t.clone() for t in self._look_up(tuple(held), tuple(settings))]

        def shapes(held: list[Tensor], settings: list[int]) -> list[Tensor]:
            return list(like(tuple(held), tuple(settings)))

        _OPERATORS.impl(name, node, "CompositeExplicitAutograd")
        _OPERATORS.impl(name, shapes, "Meta")

    @torch.no_grad()
    def __call__(self, held: tuple[Tensor, ...], settings: tuple[int, ...]) -> tuple[Tensor, ...]:
        """``make(held, settings)``, without gradients and not to be written to."""
        held = tuple(t.detach() for t in held)
        if torch.compiler.is_compiling() and not exporting():
            node = getattr(torch.ops.orthotrain, self._name)
            return tuple(node(list(held), list(settings)))
        if plain() and not any(t.is_meta or t.is_inference() for t in held):
            return self._look_up(held, settings)
        return self._make(held, settings)

    def _look_up(self, held: tuple[Tensor, ...], settings: tuple[int, ...]) -> tuple[Tensor, ...]:
        storages = [t.untyped_storage() for t in held]
        key = (self._name, settings, *(storage._cdata for storage in storages))
        state = tuple(_state(t) for t in held)
        found = _ENTRIES.get(key)
        if found is None or found.state != state:
            # What inference mode makes could not take part in a later pass with gradients.
            with torch.inference_mode(False), torch.no_grad():
                made = self._make(held, settings)
            _forget_freed()
            refs = tuple(map(_WeakStorage, storages))
            found = _ENTRIES[key] = _Entry(refs, state, made)
        return found.made


def wants_derivatives(held: tuple[Tensor, ...]) -> bool:
    """Whether the pass records a derivative in one of ``held``, or may carry a tangent of it."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in held):
        return True
    return not plain() and not torch.compiler.is_compiling()


def _state(t: Tensor) -> Hashable:
    where = (t.data_ptr(), t._version, t.dtype, t.shape, t.stride())
    numbers = t.reshape(-1)
    sample = numbers[:: max(1, len(numbers) // _SAMPLE)].cpu().contiguous()
    return (*where, sample.view(torch.uint8).numpy().tobytes())


def _forget_freed() -> None:
    """Drop what was made of weights that no longer exist.

    Until then a weak reference keeps the address of a storage from being given away, so no key is
    ever that of another weight.
    """
    for key in [k for k, v in _ENTRIES.items() if any(ref.expired() for ref in v.storages)]:
        _ENTRIES.pop(key, None)
