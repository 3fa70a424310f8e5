"""A low-rank layer that is built directly: torch makes the dense one, its weights are redrawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.layers._factors import LowRankModule, factorize_


def become_(module: LowRankModule, make: Callable[[], nn.Module], rank: int | None) -> None:
    """Make a low-rank module, in its constructor, out of a fresh dense one.

    At full rank its weights are the fresh ones. Below, they are distributed as the best
    approximations of this rank of such weights.

    Raises:
        ConfigError: torch cannot build the dense one of these arguments.
        RankError: ``rank`` is out of range.
    """
    try:
        dense = make()
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{type(module).__name__} needs the arguments of the layer of torch that it replaces, "
            f"beside rank; that one says: {error}"
        ) from error
    module.__dict__ = dense.__dict__ | {"_dense_class": type(dense)}
    for weight in module.weights_of(module):
        if module._parameters.get(weight) is not None:
            factorize_(module, weight, type(module), rank=rank, drawn=True)
