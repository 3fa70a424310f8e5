"""What a rival changes in a training, beside the network: optimizer, schedule and methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from orthotrain.methods.protocol import Method


@dataclass(frozen=True)
class Plan:
    """How a training differs from the plain one; bare it does not.

    Attributes:
        methods: Attached beside those of the family.
        optimizer: Made of parameter groups, with ``lr`` and ``betas``.
        rhythm: Factor on the learning rate after so many steps; None for 1.
        network: How a checkpoint rebuilds the network, from how the plain one is rebuilt.
    """

    methods: tuple[Method, ...] = ()
    optimizer: Callable[..., Optimizer] = AdamW
    rhythm: Callable[[int], float] | None = None
    network: Callable[[dict[str, Any]], Mapping[str, Any]] = dict


#: From the fresh model, on its device, and the number of its steps; it may change the model.
PlanOf = Callable[[nn.Module, int], Plan]


def plain(model: nn.Module, total_steps: int) -> Plan:
    """Nothing differs."""
    return Plan()
