"""Floating-point operations of a training, counted while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_Shape = tuple[int, int, int, int]

#: Products of two squares of the length per head: two forward, five backward, where the first is
#: made again.
ATTENTION_FORWARD, ATTENTION_BACKWARD = 2, 5


def counting() -> FlopCounterMode:
    """A context that counts operations; torch itself leaves out attention on a CPU."""
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def _attention_forward(query: _Shape, key: _Shape, *rest: Any, **options: Any) -> int:
    return _attention(ATTENTION_FORWARD, query, key)


def _attention_backward(
    grad: _Shape, query: _Shape, key: _Shape, *rest: Any, **options: Any
) -> int:
    return _attention(ATTENTION_BACKWARD, query, key)


def _attention(squares: int, query: _Shape, key: _Shape) -> int:
    """As torch counts it on a GPU: the mask saves nothing."""
    batch, heads, length, width = query
    return 2 * squares * batch * heads * length * key[2] * width


@dataclass
class Meter:
    """Operations of a model's steps: one step of each structure is counted, the others are like it.

    Attributes:
        model: What is trained; the sizes of its parameters, and which of them are trained, tell
            its structures apart.
        operations: Of all steps so far, whatever is computed in them.
        per_step: Of one step; None where the next one is counted.
        numbers: In all parameters of the model, and in those that are trained.
        total: Sum over the processes that share each batch.
    """

    model: nn.Module
    operations: int = 0
    per_step: int | None = None
    numbers: list[int] = field(init=False)
    total: Callable[[int], int] = int

    def __post_init__(self) -> None:
        self.numbers = self._present_numbers()

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Around the forward and backward passes of a step."""
        if self.per_step is None:
            with counting() as counter:
                yield
            self.per_step = self.total(counter.get_total_flops())
        else:
            yield
        self.operations += self.per_step

    def stepped(self) -> bool:
        """After the optimizer's step; whether it changed the structure of the model."""
        before, self.numbers = self.numbers, self._present_numbers()
        if before == self.numbers:
            return False
        self.per_step = None
        return True

    def state_dict(self) -> dict[str, Any]:
        """What the next count depends on."""
        return {name: getattr(self, name) for name in ("operations", "per_step", "numbers")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        vars(self).update(state)
        if isinstance(self.numbers, int):  # of an older checkpoint, where all were trained
            self.numbers = [self.numbers, self.numbers]

    def _present_numbers(self) -> list[int]:
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return [sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)]
