"""Floating-point operations of a training: counted while it runs, and estimated before."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from orthotrain.lab.experiments.language.config import GPTConfig, LanguageRun
from orthotrain.lab.experiments.language.networks import numbers_of

_Shape = tuple[int, int, int, int]

# Products of two squares of the context per head: two forward, five backward, where the first
# is made again.
_ATTENTION_FORWARD, _ATTENTION_BACKWARD = 2, 5


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
    return _attention(_ATTENTION_FORWARD, query, key)


def _attention_backward(
    grad: _Shape, query: _Shape, key: _Shape, *rest: Any, **options: Any
) -> int:
    return _attention(_ATTENTION_BACKWARD, query, key)


def _attention(squares: int, query: _Shape, key: _Shape) -> int:
    """As torch counts it on a GPU: the mask saves nothing."""
    batch, heads, length, width = query
    return 2 * squares * batch * heads * length * key[2] * width


def forward_operations(model: GPTConfig, *, batch: int, stored: float = 1.0) -> int:
    """Operations of one forward pass.

    Args:
        model: Network.
        batch: Windows.
        stored: Share of all numbers that is stored after a cut.
    """
    return _operations(model, batch=batch, stored=stored, products=1, squares=_ATTENTION_FORWARD)


def step_operations(model: GPTConfig, *, batch: int, stored: float = 1.0) -> int:
    """Operations of one forward and backward pass; arguments as above."""
    squares = _ATTENTION_FORWARD + _ATTENTION_BACKWARD
    return _operations(model, batch=batch, stored=stored, products=3, squares=squares)


def _operations(model: GPTConfig, *, batch: int, stored: float, products: int, squares: int) -> int:
    width, depth, context = model.width, model.depth, model.context
    everything = numbers_of(model)
    # Positions and norms are added and scaled, all other numbers are multiplied with each byte.
    multiplied = stored * everything - context * width - (2 * depth + 1) * width
    attention = 2 * squares * context * width * depth
    return round(batch * context * (2 * products * multiplied + attention))


def short_steps(
    config: LanguageRun, narrow: GPTConfig, *, stored: float, branch: float, teacher: bool
) -> int:
    """Steps of a narrow network for as much compute as a branch with a teacher.

    Args:
        config: The run.
        narrow: The narrow network.
        stored: Share of the numbers that the branch stores.
        branch: Its steps as a share of those of dense training.
        teacher: Whether the narrow network has the teacher, too.
    """
    full, batch = config.model, config.data.batch_size
    look = forward_operations(full, batch=batch)
    steps = round(branch * config.optim.steps)
    spent = steps * (step_operations(full, batch=batch, stored=stored) + look)
    each = step_operations(narrow, batch=batch) + (look if teacher else 0)
    return max(1, round(spent / each))
