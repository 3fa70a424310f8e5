"""Optimizers inside others: which one takes the steps, and what is wrapped around it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from orthotrain.errors import ConfigError
from orthotrain.methods._compat import fires_step_hooks

# What was found around an optimizer; its own state per parameter has to follow, too.
_around: weakref.WeakKeyDictionary[Optimizer, list[weakref.ref[Any]]] = weakref.WeakKeyDictionary()


def stepped_optimizer(what: str, given: object) -> Optimizer:
    """The optimizer that takes the steps of ``given``: itself, or the one it is wrapped around.

    A wrapper (SAM, Lookahead, Accelerate's, Lightning's) keeps it in any attribute, and it holds
    all parameters of the wrapper. Of several such, or none, the wrapper's own steps count.

    Raises:
        ConfigError: There is none, or several that nothing of torch steps together.
    """
    chain = _chain(what, given)
    inner: Optimizer = chain[-1]
    # Classes with slots alone bear no weak reference, and have no state of their own to follow.
    around = [each for each in chain[:-1] if type(each).__weakrefoffset__]
    _around[inner] = [weakref.ref(wrapper) for wrapper in around]
    return inner


def inner_optimizer(what: str, given: object) -> Optimizer:
    """What :func:`stepped_optimizer` finds, without taking notice of what is around it.

    Raises:
        ConfigError: As for :func:`stepped_optimizer`.
    """
    inner: Optimizer = _chain(what, given)[-1]
    return inner


def outermost_optimizer(what: str, given: object) -> Optimizer:
    """The outermost optimizer that is one of torch in all respects, hooks included.

    Raises:
        ConfigError: As for :func:`stepped_optimizer`.
    """
    found: Optimizer = next(
        each for each in _chain(what, given) if isinstance(each, Optimizer) and _is_whole(each)
    )
    return found


def wrappers_around(optimizer: Optimizer) -> list[Any]:
    """What ``attach`` was last given around an optimizer, as far as it still exists."""
    alive = (reference() for reference in _around.get(optimizer, ()))
    return [wrapper for wrapper in alive if wrapper is not None]


def held_optimizers(owner: object) -> dict[str, Optimizer]:
    """Optimizers that an object keeps, by attribute; in lists, tuples and mappings, too."""
    found: dict[str, Optimizer] = {}
    for name, value in getattr(owner, "__dict__", {}).items():
        if isinstance(value, Optimizer):
            found[name] = value
        elif isinstance(value, list | tuple):
            found |= {f"{name}[{i}]": v for i, v in enumerate(value) if isinstance(v, Optimizer)}
        elif isinstance(value, Mapping) and name != "state":
            found |= {f"{name}[{k!r}]": v for k, v in value.items() if isinstance(v, Optimizer)}
    # A property of some wrappers, such as Lightning's Fabric.
    inner = getattr(owner, "optimizer", None)
    if isinstance(inner, Optimizer) and all(inner is not other for other in found.values()):
        found["optimizer"] = inner
    return found


def _chain(what: str, given: object) -> list[Any]:
    """The wrappers from the outside in, then the optimizer that takes the steps."""
    chain = [given]
    while (inner := _inside(what, chain[-1], chain)) is not None:
        chain.append(inner)
    return chain


def _inside(what: str, outer: object, seen: Sequence[object]) -> Optimizer | None:
    held = {n: o for n, o in held_optimizers(outer).items() if all(o is not s for s in seen)}
    own = _parameters(outer)
    whole = {id(o): o for o in held.values() if own <= _parameters(o)}
    if len(whole) == 1:
        return next(iter(whole.values()))
    if isinstance(outer, Optimizer) and _is_whole(outer):
        return None
    kind = type(outer).__name__
    if held:
        raise ConfigError(
            f"{what}: {kind} holds the optimizers {', '.join(held)}, and no step of its own that "
            f"fires torch's hooks; give the one that trains the model, such as "
            f"{kind}.{next(iter(held))}, all of them as a list where they train parts of it, or "
            f"call torch.optim.Optimizer.__init__ in {kind}"
        )
    if isinstance(outer, Optimizer):
        raise ConfigError(
            f"{what}: {kind} does not fire torch's hooks around its step; call "
            f"torch.optim.Optimizer.__init__ in {kind}.__init__, or give the optimizer inside it"
        )
    if callable(getattr(outer, "step", None)):
        raise ConfigError(
            f"{what}: {kind} has a step, and no optimizer was found in its attributes; give the "
            f"torch.optim.Optimizer inside it, or keep that in an attribute of {kind}"
        )
    raise ConfigError(
        f"{what}: need a torch.optim.Optimizer, got {kind}; "
        f"the order is {what}(model, optimizer, ...)"
    )


def _parameters(optimizer: object) -> set[int]:
    groups = getattr(optimizer, "param_groups", None) or []
    return {id(p) for group in groups for p in group["params"]}


def _is_whole(optimizer: Optimizer) -> bool:
    return fires_step_hooks(optimizer) and bool(getattr(optimizer, "param_groups", None))


def step_hooks(
    optimizer: Optimizer,
    begins: Callable[[Optimizer, Any, Any], Any],
    ends: Callable[[], None],
    loaded: Callable[[], None],
) -> list[RemovableHandle]:
    """Hooks on an optimizer and on what is around it.

    Args:
        optimizer: The one that takes the steps.
        begins: Called right before its step, as a hook of torch.
        ends: Called after its step; where that was taken inside the step of a wrapper, when the
            outermost of these ends.
        loaded: Called after a state was loaded into any of them.
    """
    steps = _Steps(id(optimizer), begins, ends)
    hooks = []
    for each in (optimizer, *wrappers_around(optimizer)):
        if isinstance(each, Optimizer) and _is_whole(each):
            hooks += [
                each.register_step_pre_hook(steps.before),
                each.register_step_post_hook(steps.after),
                each.register_load_state_dict_post_hook(lambda _: loaded()),
            ]
    return hooks


class _Steps:
    """Which of the optimizers around each other was called, by ``id``: hooks keep nothing alive."""

    def __init__(
        self,
        inner: int,
        begins: Callable[[Optimizer, Any, Any], Any],
        ends: Callable[[], None],
    ) -> None:
        self._inner, self._begins, self._ends = inner, begins, ends
        self._outermost: int | None = None
        self._stepped = False

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if self._outermost in (None, id(optimizer)):
            self._outermost, self._stepped = id(optimizer), False
        return self._begins(optimizer, args, kwargs) if id(optimizer) == self._inner else None

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stepped |= id(optimizer) == self._inner
        if id(optimizer) == self._outermost:
            self._outermost = None
            if self._stepped:
                self._ends()
