"""Hooks on a weight's gradient: which of them need the shape that the weight has now.

A weight that becomes low-rank keeps its hooks, and they are given gradients of factors. A hook that
clips, scales or logs does not mind. One that holds a mask, or takes rows out of what it is
given, would stop the run or change other numbers than it means. A hook cannot be tried without
doing what it does, so each is watched at its work while the weight is dense.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from orthotrain.errors import ConfigError
from orthotrain.methods.weak_hook import WeakHook

# Functions whose arguments are places, sizes, or another side of a product.
_PLACES: Final = frozenset(
    {
        "chunk", "diagonal", "fill_diagonal_", "index_add_", "index_copy_", "index_fill",
        "index_fill_", "index_select", "narrow", "select", "split", "tril", "tril_", "triu",
        "triu_",
    }
)  # fmt: skip
_SIZES: Final = frozenset({"reshape", "unflatten", "view"})
_PRODUCTS: Final = frozenset({"__matmul__", "__rmatmul__", "einsum", "linear", "matmul", "mm"})


def watch_hooks(parameter: nn.Parameter, layer: str) -> None:
    """Watch the hooks on the gradient of a dense weight from now on; each goes on as before."""
    for hooks in _hooks_of(parameter):
        for key, hook in hooks.items():
            if not isinstance(hook, WeakHook | _Watched):
                hooks[key] = _Watched(hook, parameter, layer)


def release_hooks(parameters: Iterable[nn.Parameter]) -> None:
    """Put the hooks on gradients of weights back as they were given."""
    for parameter in parameters:
        for hooks in _hooks_of(parameter):
            hooks.update({k: h.hook for k, h in hooks.items() if isinstance(h, _Watched)})


def hook_that_needs_the_shape(parameter: nn.Parameter) -> str | None:
    """Why a hook on the gradient of a weight needs the weight's shape, as far as it was seen."""
    watched = [hook for hook in _watched_on(parameter) if hook.reason is not None]
    if not watched:
        return None
    hook = watched[0]
    return f"its gradient has a hook, {hook.name}, that {hook.reason}, so it needs the dense shape"


def unseen_hook(parameter: nn.Parameter) -> str | None:
    """Name of a hook on the gradient of a weight that did not run yet, so nothing is known."""
    return next((hook.name for hook in _watched_on(parameter) if not hook.seen), None)


class _Watched:
    """A hook of the user: watched while the weight is dense, its failure explained after that."""

    def __init__(self, hook: Any, parameter: nn.Parameter, layer: str) -> None:
        self.hook, self.layer = hook, layer
        self.name = self.__name__ = getattr(hook, "__qualname__", type(hook).__qualname__)
        self.reason: str | None = None
        self.seen = False
        self._weight, self._shape = id(parameter), parameter.shape

    def __call__(self, given: Tensor) -> Any:
        if torch.compiler.is_compiling():  # compiled autograd traces through here
            return self.hook(given)
        if given.shape != self._shape:
            return self._call_low_rank(given)
        with _Watch(given, weight=self._weight) as watch:
            result = self.hook(given)
        if isinstance(result, Tensor) and not watch.made(result):
            watch.reason = watch.reason or "gives a tensor of its own"
        self.seen, self.reason = True, self.reason or watch.reason
        return result

    def _call_low_rank(self, given: Tensor) -> Any:
        advice = (
            f"{self.layer} became low-rank, so its hook {self.name} is given gradients of "
            f"factors, {tuple(given.shape)} in place of {tuple(self._shape)}. If it needs the "
            "dense shape, leave the layer out with skip"
        )
        try:
            result = self.hook(given)
        except (RuntimeError, IndexError, AssertionError) as error:
            kind = type(error).__name__
            raise ConfigError(f"{advice}. The hook raised {kind}: {error}") from error
        if isinstance(result, Tensor) and result.shape != given.shape:
            raise ConfigError(f"{advice}. The hook returned the shape {tuple(result.shape)}")
        return result


class _Watch(TorchFunctionMode):
    """Sees each call of torch inside a hook; ``ours`` is what was made of the gradient alone."""

    def __init__(self, gradient: Tensor, *, weight: int) -> None:
        super().__init__()
        self.reason: str | None = None
        self._ours = {id(gradient): gradient}
        self._weight = weight

    def made(self, result: Tensor) -> bool:
        """Whether a tensor was made of the gradient."""
        return id(result) in self._ours

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The call itself, and what it says about the hook."""
        result = func(*args, **(kwargs or {}))
        given = list(_tensors((args, kwargs)))
        ours = [t for t in given if self.made(t) or id(t) == self._weight]
        if ours:
            reason = self.reason or self._reason(func.__name__, args, given, ours, result)
            self.reason = None if reason and _in_an_optimizer() else reason
            # Numbers that sum a gradient up, such as its norm, have no places.
            self._ours |= {id(t): t for t in _tensors(result) if t.numel() > 1}
        return result

    def _reason(
        self, name: str, args: Any, given: list[Tensor], ours: list[Tensor], result: Any
    ) -> str | None:
        for held in given:
            if held.numel() == 1 or any(held is one for one in ours):
                continue
            if name in _PRODUCTS or any(_fits(held, one) for one in ours):
                return f"holds a tensor of shape {tuple(held.shape)}"
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(map(self._is_a_place, index)):
                return "takes a part of what it is given"
        known = {one.shape for one in self._ours.values()}
        resized = name in _SIZES and result.ndim > 1 and result.shape not in known
        return f"calls {name}" if resized or name in _PLACES else None

    def _is_a_place(self, index: Any) -> bool:
        """Not all of a side, and not where something of the gradient says."""
        if isinstance(index, Tensor):
            return not self.made(index)
        return not (index is None or index is ... or index == slice(None))


def _hooks_of(parameter: nn.Parameter) -> Iterator[dict[int, Any]]:
    yield parameter._backward_hooks or {}
    yield getattr(parameter, "_post_accumulate_grad_hooks", None) or {}


def _watched_on(parameter: nn.Parameter) -> list[_Watched]:
    return [h for hooks in _hooks_of(parameter) for h in hooks.values() if isinstance(h, _Watched)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def _fits(held: Tensor, ours: Tensor) -> bool:
    """Whether two tensors can be multiplied entry by entry."""
    pairs = zip(reversed(held.shape), reversed(ours.shape), strict=False)
    return held.ndim <= ours.ndim and all(a in (1, b) for a, b in pairs)


def _in_an_optimizer() -> bool:
    """Whether an optimizer steps inside the backward pass: its state follows the weight."""
    frame = sys._getframe().f_back
    while frame is not None and not isinstance(frame.f_locals.get("self"), Optimizer):
        frame = frame.f_back
    return frame is not None
