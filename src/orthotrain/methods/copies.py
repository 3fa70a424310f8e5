"""Copies of a model that go their own way: alone and frozen, or together with its optimizer."""

from __future__ import annotations

import copy
import re
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from orthotrain._doors import checked
from orthotrain._sharded import SHARD_AFTER, require_whole
from orthotrain.errors import ConfigError
from orthotrain.methods._wrapped_optimizer import held_optimizers
from orthotrain.methods.select import named_parameters_clean, unwrap
from orthotrain.methods.weak_hook import remove_dead

# A scheduler puts a ``step`` onto an optimizer that calls the one it was put on.
_OF_THE_ORIGINAL: Final = ("step", "_opt_called")


@checked
def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of a model as it is now: evaluation mode, no gradients, nothing attached.

    A teacher for :func:`orthotrain.teacher_loss`. It shares no tensor with the model, so it stays
    as it is while the model trains. Hooks of ``attach`` do not come along. Hooks of your own do,
    because one of them may change an output.

    Args:
        model: Any module; of DDP, ``torch.compile`` and other wrappers the inner model is copied.

    Returns:
        The inner model's copy, dense or low-rank as the model is, on its devices.

    Raises:
        ConfigError: The model is sharded over processes.
    """
    require_whole("frozen_copy", model, SHARD_AFTER)
    return _copied(unwrap(model), {}).eval().requires_grad_(False)


def copy_together(
    model: nn.Module, optimizer: Optimizer, *, what: str
) -> tuple[nn.Module, Optimizer]:
    """Copies of a model and its optimizer that belong together and share nothing with them.

    The copy's groups and state refer to the copied parameters, in optimizers that it holds, too.
    Gradients, hooks on the optimizer, hooks of ``attach`` and schedulers do not come along.

    Args:
        model: The inner model, without wrappers.
        optimizer: A ``torch.optim.Optimizer`` over parameters of ``model`` alone.
        what: Who asks, for messages.

    Raises:
        ConfigError: The optimizer holds a parameter that is not of the model: a copy would train
            a parameter that nobody uses.
    """
    require_own_parameters(model, optimizer, what=what)
    memo: dict[int, Any] = {}
    twin = _copied(model, memo)
    return twin, _copied_optimizer(optimizer, memo)


def require_own_parameters(model: nn.Module, optimizer: Optimizer, *, what: str) -> None:
    """Raise ConfigError where the optimizer holds a parameter that is not of the model."""
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = [tuple(p.shape) for p in held if id(p) not in own]
    if foreign:
        raise ConfigError(
            f"{what} needs an optimizer over the model's own parameters, got one that holds "
            f"{len(foreign)} others, the first of shape {foreign[0]}; make their module a child of "
            "the model, or build the optimizer from model.parameters()"
        )


def matching_copy(model: nn.Module, other: nn.Module) -> nn.Module:
    """The module inside ``other`` whose parameters are named like those of ``model``.

    Raises:
        ConfigError: ``other`` is the model itself, or no module in it has these parameters.
    """
    names = _dense_names(model)
    candidate: nn.Module | None = unwrap(other)
    while candidate is not None:
        if candidate is model:
            raise ConfigError("Handle.track: got the attached model itself, need a copy of it")
        if _dense_names(candidate) == names:
            return candidate
        # Averaging classes of other libraries also keep their copy under this name.
        inner = candidate._modules.get("module")
        candidate = None if inner is None else unwrap(inner)
    raise ConfigError(
        f"Handle.track: the parameters of this {type(other).__name__} are not named like the "
        "model's; pass a copy made with copy.deepcopy, torch's AveragedModel or the like"
    )


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        remove_dead_hooks(module)
    return twin


def remove_dead_hooks(module: nn.Module) -> None:
    """Drop hooks of ours that work for nothing: they came along in a copy, or that is gone."""
    remove_dead(
        module._forward_hooks, module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )  # fmt: skip
    remove_dead(module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
    remove_dead(module._load_state_dict_post_hooks)


def _copied_optimizer(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """A copy with every attribute; ``copy.deepcopy`` keeps groups, state and defaults alone."""
    twin = type(optimizer).__new__(type(optimizer))
    memo[id(optimizer)] = twin
    own = {
        name: value
        for name, value in vars(optimizer).items()
        if not name.endswith("_hooks") and name not in _OF_THE_ORIGINAL
    }
    for held in held_optimizers(optimizer).values():
        if id(held) not in memo:
            _copied_optimizer(held, memo)
    twin.__setstate__(copy.deepcopy(own, memo))
    return twin


def _dense_names(model: nn.Module) -> set[str]:
    """Parameter names, with a core or a pair under the name of the weight it stands for."""
    return {
        re.sub(r"(^|[._])(core|pair)$", r"\1weight", name)
        for name, _ in named_parameters_clean(model)
    }
