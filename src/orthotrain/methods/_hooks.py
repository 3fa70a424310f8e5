"""What ``attach`` leaves on a model: hooks that hold their handle weakly."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from orthotrain.errors import OrthotrainWarning
from orthotrain.methods._compat import active_ddp_module
from orthotrain.methods._hooked import Hooked
from orthotrain.methods.weak_hook import WeakHook

# Longer than any gradient accumulation in common use, short enough to be seen in the first
# minutes of a run whose methods never act.
_BACKWARDS_BEFORE_WARNING = 500


class ForwardHook(WeakHook[Hooked]):
    """After a forward: finds the DDP wrapper, and the loss where the output carries one."""

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        # A compiled forward traces through here; the constant removes the rest from its graph.
        if torch.compiler.is_compiling() or (handle := self.owner) is None:
            return
        if (wrapper := active_ddp_module()) is not None and handle.run.wrapper is not wrapper:
            handle.run.wrapper = wrapper
        # A tensor has no loss inside; asking it for one would cost an exception per step.
        if not isinstance(output, Tensor) and module.training and torch.is_grad_enabled():
            loss = _loss_of(output)
            if loss is not None:
                handle.observe(loss)


class LoadHook(WeakHook[Hooked]):
    """After ``load_state_dict`` of the model: shapes may have changed under the optimizer."""

    def __call__(self, module: nn.Module, incompatible_keys: object) -> None:
        if (handle := self.owner) is not None:
            handle.model_loaded()


class BackwardHook(WeakHook[Hooked]):
    """After each backward pass until the first step: notices a step that is never seen."""

    def __init__(self, handle: Hooked | None = None) -> None:
        super().__init__(handle)
        self._names = "" if handle is None else ", ".join(handle.methods)
        self._backwards = 0
        self._registered: RemovableHandle | None = None

    def put_on(self, parameter: nn.Parameter) -> None:
        """Fire whenever the gradient of ``parameter`` is complete."""
        self._registered = parameter.register_post_accumulate_grad_hook(self)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Stop counting."""
        if self._registered is not None:
            self._registered.remove()

    def __call__(self, parameter: Tensor) -> None:
        self._backwards += 1
        if self._backwards < _BACKWARDS_BEFORE_WARNING:
            return
        self.remove()
        if (handle := self.owner) is None:
            remedy = "the optimizer given to attach was deleted; attach to the one that steps"
        elif handle.auto:
            remedy = "is another optimizer being stepped than the one given to attach?"
        else:
            remedy = "with auto=False, call handle.step() after every optimizer.step()"
        warnings.warn(
            f"{self._backwards} backward passes and not one optimizer step was seen, so "
            f"{self._names} did nothing yet; {remedy}",
            OrthotrainWarning,
            stacklevel=2,
        )


def _loss_of(output: object) -> Tensor | None:
    loss: Any = output.get("loss") if isinstance(output, Mapping) else None
    if loss is None:
        loss = getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None
