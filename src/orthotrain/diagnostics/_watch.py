"""The hooks of the condition monitor, which hold it weakly."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from orthotrain.methods.weak_hook import WeakHook, remove_dead


class Watcher(Protocol):
    """What the hooks tell."""

    def wants(self, layer: str) -> bool:
        """Whether this forward pass of ``layer`` is to be looked at."""

    def look(self, layer: str, x: Tensor) -> None:
        """Take what ``layer`` forms its covariance of."""

    def step_has_closure(self, closure: bool) -> None:
        """Take whether the step that begins computes its gradients itself."""


class LookHook(WeakHook[Watcher]):
    """At a layer's forward: shows its input or output, in training and when it is wanted."""

    def __init__(
        self, watcher: Watcher | None = None, layer: str = "", output: bool = False
    ) -> None:
        super().__init__(watcher)
        self._layer = layer
        self._output = output

    def put_on(self, module: nn.Module) -> RemovableHandle:
        """Fire at every forward of ``module``."""
        if self._output:
            remove_dead(module._forward_hooks)
            return module.register_forward_hook(self)
        remove_dead(module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
        return module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], last: Any) -> None:
        # Before a forward the last argument holds its keywords, after it its output. A compiled
        # forward traces through here; the constant removes the rest from its graph.
        if torch.compiler.is_compiling() or (watcher := self.owner) is None:
            return
        if not module.training or not torch.is_grad_enabled() or not watcher.wants(self._layer):
            return
        x = last if self._output else next(iter((*args, *last.values())), None)
        if isinstance(x, Tensor):
            watcher.look(self._layer, x)


class ClosureHook(WeakHook[Watcher]):
    """Before an optimizer's step: tells whether it was given a closure."""

    def put_on(self, optimizer: Optimizer) -> RemovableHandle:
        """Fire before every step of ``optimizer``."""
        return optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (watcher := self.owner) is not None:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            watcher.step_has_closure(closure is not None)
