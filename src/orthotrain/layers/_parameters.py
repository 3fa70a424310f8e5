"""The one place where a Parameter that stands for a weight takes another shape or name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotrain._resized import shape_changed
from orthotrain.errors import ConfigError

# What was made of the value of a Parameter, by its ``id``; see ``_inference``.
MADE_OF: dict[int, Any] = {}


def resize_parameter_(parameter: nn.Parameter, value: Tensor) -> None:
    """Give the same Parameter object another value and shape, and no gradient.

    ``set_`` under ``no_grad`` is the only way that keeps the object, a living old loss and
    DistributedDataParallel all working. Optimizer state of the old shape is dropped at the next
    step of an optimizer, unless it followed.

    Raises:
        ConfigError: The parameter is sharded: no process has all of it.
    """
    before = parameter.shape
    MADE_OF.pop(id(parameter), None)
    if hasattr(parameter, "device_mesh"):
        raise ConfigError(
            f"a sharded parameter (DTensor) of shape {tuple(before)} cannot take the shape "
            f"{tuple(value.shape)}; give the model its structure before it is sharded "
            "(docs/sharding.md)"
        )
    with torch.no_grad():
        parameter.set_(value.to(parameter.dtype).contiguous().clone())  # type: ignore[call-overload]
    parameter.grad = None
    if parameter.shape != before:
        shape_changed(parameter, before)


def rename_(parameters: dict[str, Any], old: str, new: str) -> None:
    """Rename a key in place and keep its position, so that parameter order never changes."""
    items = [(new if name == old else name, value) for name, value in parameters.items()]
    parameters.clear()
    parameters.update(items)
