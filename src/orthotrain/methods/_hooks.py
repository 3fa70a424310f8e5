"""What ``attach`` leaves on a model: hooks that hold their handle weakly."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from orthotrain._sharded import require_as_attached, sharding_of
from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.methods._compat import active_ddp_module, is_replica
from orthotrain.methods._hooked import Hooked
from orthotrain.methods.protocol import Method, Phase
from orthotrain.methods.weak_hook import WeakHook

# Longer than any gradient accumulation in common use, short enough to be seen in the first
# minutes of a run whose methods never act.
_BACKWARDS_BEFORE_WARNING = 500
# Between accumulated passes nothing changes a parameter; what does is another optimizer, or SAM.
_CHANGES_BEFORE_WARNING = 10
_TIMES = 4  # as many as were ever seen between two steps
# Steps of another optimizer, each with a pass that reaches this one's parameters. Those who train a
# critic more often than a generator do so 5 to 10 times.
_OTHERS_BEFORE_WARNING = 32


def refuse_data_parallel(methods: Iterable[Method]) -> None:
    """Raise ConfigError where methods change shapes: they see the passes of copies alone."""
    names = [type(method).__name__ for method in methods if method.phase is Phase.STRUCTURE]
    if names:
        raise ConfigError(
            f"{', '.join(names)} sees no pass of a model in DataParallel on several devices, which "
            "copies it for each; use DistributedDataParallel with one process per device"
        )


class FirstPassHook(WeakHook[Hooked]):
    """Before the first forward: whether the model was sharded since ``attach``.

    The optimizer that was given to ``attach`` may never step then, and nothing would be told.
    """

    def __init__(self, handle: Hooked | None = None) -> None:
        super().__init__(handle)
        self._sharding = None if handle is None else sharding_of(handle.run.model)
        self._registered: RemovableHandle | None = None

    def put_on(self, model: nn.Module) -> RemovableHandle:
        """Fire until a forward has begun."""
        self._registered = model.register_forward_pre_hook(self)
        return self._registered

    def __call__(self, model: nn.Module, inputs: object) -> None:
        if torch.compiler.is_compiling() or self.owner is None:
            return
        require_as_attached(model, self._sharding)
        if self._registered is not None:
            self._registered.remove()


class ForwardHook(WeakHook[Hooked]):
    """After a forward: finds the DDP wrapper, and the loss where the output carries one."""

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        # A compiled forward traces through here; the constant removes the rest from its graph.
        if torch.compiler.is_compiling() or (handle := self.owner) is None:
            return
        if is_replica(module):
            refuse_data_parallel(handle.methods.values())
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
    """After each backward pass: notices an optimizer that is not stepped, or not any more.

    It counts the passes since the last step, those before which something else had changed the
    parameter, and those before which another optimizer of the same training had stepped: a GAN
    steps one more often, and accumulation holds all of them back. Each limit follows the most that
    was seen between two steps: accumulated gradients, steps that ``GradScaler`` skips, SAM.

    A pass is counted at one parameter. The first pass tells which have a gradient at all; from the
    second one on, the first of those in model order alone is watched.
    """

    def __init__(self, handle: Hooked | None = None, optimizer: Optimizer | None = None) -> None:
        super().__init__(handle)
        self._names = "" if handle is None else ", ".join(handle.methods)
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)
        self._kind = type(optimizer).__name__
        several = handle is not None and handle.run.has_several
        self._which = "one of the optimizers" if several else "the optimizer"
        self._passes = self._changes = self._others = 0
        self._most_passes = self._most_changes = self._most_others = 0
        self._other_stepped = False
        self._seen = self._paused = False
        self._version: int | None = None
        self._on: dict[int, RemovableHandle] = {}  # by id of the parameter, in model order
        self._reached: set[int] = set()

    def put_on(self, parameters: Iterable[nn.Parameter]) -> None:
        """Fire whenever the gradient of one of ``parameters`` is complete."""
        for p in parameters:
            self._on[id(p)] = p.register_post_accumulate_grad_hook(self)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Stop counting."""
        for hook in self._on.values():
            hook.remove()
        self._on = {}

    def _counts_at(self, parameter: Tensor) -> bool:
        """Whether a pass is counted here, once; and in the first passes, where later ones are."""
        key = id(parameter)
        if len(self._on) < 2:
            return True
        if key not in self._reached:
            self._reached.add(key)
            if key == next(each for each in self._on if each in self._reached):
                self._version = parameter._version
            return len(self._reached) == 1
        watched = next(each for each in self._on if each in self._reached)
        for other, hook in self._on.items():
            if other != watched:
                hook.remove()
        self._on = {watched: self._on[watched]}
        return key == watched

    def pause(self) -> None:
        """A step begins; passes inside it, of a closure, do not count."""
        self._paused = True

    def resume(self, *, stepped: bool, other: bool = False) -> None:
        """A step ended; ``stepped`` unless only a call of ``handle.step()`` says so.

        Args:
            stepped: It was that of this optimizer.
            other: It was that of another one of the same training.
        """
        self._paused = False
        self._other_stepped |= other
        if stepped:
            self._seen, self._version = True, None
            self._most_passes = max(self._most_passes, self._passes)
            self._most_changes = max(self._most_changes, self._changes)
            self._most_others = max(self._most_others, self._others)
            self._passes = self._changes = self._others = 0
            self._other_stepped = False

    def __call__(self, parameter: Tensor) -> None:
        # Compiled autograd traces through here, and counters would compile it anew at each pass.
        if torch.compiler.is_compiling():
            return
        if not self._counts_at(parameter) or self._paused:
            return
        self._passes += 1
        version = parameter._version
        self._changes += self._version is not None and version != self._version
        self._version = version
        self._others += self._other_stepped
        self._other_stepped = False
        if (
            self._passes >= max(_BACKWARDS_BEFORE_WARNING, _TIMES * self._most_passes)
            or self._changes >= max(_CHANGES_BEFORE_WARNING, _TIMES * self._most_changes)
            or self._others >= max(_OTHERS_BEFORE_WARNING, _TIMES * self._most_others)
        ):
            self._warn()

    def _warn(self) -> None:
        self.remove()
        if self._seen:
            said = (
                f"{self._passes} backward passes since the last step of {self._kind}, "
                f"{self._which} given to attach, so {self._names} did nothing since"
            )
        else:
            of_which = "" if self._which == "the optimizer" else f" of {self._kind}"
            said = (
                f"{self._passes} backward passes and not one optimizer step{of_which} was seen, so "
                f"{self._names} did nothing yet"
            )
        handle = self.owner
        if handle is None or self._optimizer is None or self._optimizer() is None:
            remedy = f"the {self._kind} given to attach was deleted; attach to the one that steps"
        elif handle.auto and self._others >= _OTHERS_BEFORE_WARNING:
            remedy = (
                "other optimizers of the same attach went on: step this one, too, or attach "
                "without it. Where it starts later on purpose, nothing is wrong"
            )
        elif handle.auto:
            remedy = (
                f"is another optimizer being stepped than the {self._kind} given to attach? "
                "Attach to the one that steps, or call handle.detach() where training is over"
            )
        else:
            remedy = "with auto=False, call handle.step() after every optimizer.step()"
        warnings.warn(f"{said}; {remedy}", OrthotrainWarning, stacklevel=3)


def _loss_of(output: object) -> Tensor | None:
    loss: Any = output.get("loss") if isinstance(output, Mapping) else None
    if loss is None:
        loss = getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None
