"""Parameters that took another shape: optimizers must not step on state of the one before.

torch does not compare shapes, and a fused optimizer reads beyond the end of what it is given.
Nobody knows all optimizers of a process, so each is looked at when it steps: once after every
change, through torch's hook before all steps, which is put there by the first change.
"""

from __future__ import annotations

from importlib import import_module
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

# On the Parameter itself: torch.utils.swap_tensors refuses one that is referred to weakly.
_EARLIER = "_orthotrain_earlier_shapes"
_LEFT = "_orthotrain_left_model"

_changes = 0
_looked_at: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

#: Optimizers whose handle looks at them itself.
looked_after: WeakSet[Optimizer] = WeakSet()


def shape_changed(parameter: nn.Parameter, before: torch.Size) -> None:
    """Say that a Parameter had another shape before."""
    _have_optimizers_looked_at()
    earlier = parameter.__dict__.setdefault(_EARLIER, [])  # which pickle takes along
    if tuple(before) not in earlier:
        earlier.append(tuple(before))


def left_model(parameter: nn.Parameter) -> None:
    """Say that other Parameters took the place of this one in its model."""
    _have_optimizers_looked_at()
    parameter.__dict__[_LEFT] = True


def has_left_model(parameter: nn.Parameter) -> bool:
    """Whether other Parameters took the place of this one."""
    return _LEFT in parameter.__dict__


def _have_optimizers_looked_at() -> None:
    global _changes  # of the process, as optimizers are
    if not _changes:
        register_optimizer_step_pre_hook(_before_any_step)
    _changes += 1


def earlier_shapes(parameter: nn.Parameter) -> set[tuple[int, ...]]:
    """The shapes that a Parameter had before this one; often none."""
    return {*parameter.__dict__.get(_EARLIER, ())} - {tuple(parameter.shape)}


def must_look_at(optimizer: Optimizer) -> bool:
    """Whether a Parameter took another shape since this was asked for the optimizer."""
    before = _looked_at.get(optimizer, 0)
    if before != _changes:
        _looked_at[optimizer] = _changes
    return before != _changes


def _before_any_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    if torch.compiler.is_compiling() or optimizer in looked_after or not must_look_at(optimizer):
        return
    # By name: layers change shapes, and methods, beside them, know what is in optimizer state.
    state = import_module("orthotrain.methods.optimizer_state")
    state.drop_outlived(optimizer, every_misfit=True)
