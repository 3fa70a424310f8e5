"""A checkpoint of another model is refused before a framework loads it: nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from orthotrain.errors import CheckpointError
from orthotrain.integrations._pretrained import own_state
from orthotrain.lowrank.misfit import Misfit, is_renamed, misfit, shapes_of
from orthotrain.lowrank.pretrained import STATE_FILE, shapes_in
from orthotrain.methods.weak_hook import WeakHook


def require_checkpoint_of(model: nn.Module, folder: Path) -> None:
    """Refuse a checkpoint folder of a ``Trainer`` whose weights are those of another model.

    A folder without a file of weights of the whole model, such as one of adapters, is let pass.

    Raises:
        CheckpointError: The weights are of another model, or damaged.
    """
    own = own_state(folder / STATE_FILE)
    try:
        shapes = shapes_in(folder)
    except Exception as error:
        raise CheckpointError(
            f"the weights in {folder} are damaged: {type(error).__name__}: {error}; resume from an "
            "earlier checkpoint"
        ) from error
    if own is not None:
        shapes = shapes_of(own)
    elif shapes is None or is_renamed(model, shapes):
        return
    found = misfit(model, shapes)
    if any(found):
        raise _of_another_model(model, folder, _architecture(folder) or "another model", found)


class FittingHook(WeakHook[Any]):
    """Before a Lightning checkpoint is loaded into a module: whether it is one of this module."""

    def __call__(
        self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any
    ) -> None:
        """Compare.

        Raises:
            CheckpointError: The state dict is that of another module.
        """
        if (trainer := self.owner) is None:
            return
        shapes = shapes_of(state_dict)
        strict = getattr(module, "strict_loading", True)  # torch tells every hook that it is
        found = misfit(module, shapes)
        if any(found) if strict else found.of_other_shape:
            holds = f"{len(shapes)} tensors of another model"
            raise _of_another_model(module, trainer.ckpt_path or "the state dict", holds, found)


def _of_another_model(
    model: nn.Module, where: object, holds: str, found: Misfit
) -> CheckpointError:
    count = sum(each.numel() for each in model.parameters() if not is_lazy(each))
    lazy = [name for name, each in model.named_parameters() if is_lazy(each)]
    first = f"call the model on a batch first, since {', '.join(lazy[:3])} have no shape yet; or "
    return CheckpointError(
        f"resuming needs a checkpoint of this {type(model).__name__} with {count:,} parameters, "
        f"{where} holds {holds}: {found}. {(first * bool(lazy)).capitalize()}"
        f"{'n' if lazy else 'N'}ame a checkpoint of this model, or build the model that was saved. "
        "Nothing was changed"
    )


def _architecture(folder: Path) -> str | None:
    """What ``config.json`` says that the folder holds; None where it says nothing."""
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        return f"another {', '.join(names)}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
