"""The base of hooks that copies of a model can carry harmlessly.

``copy.deepcopy`` and pickle take a module's hooks along. Each hook holds what it works for weakly
and is copied as one that holds nothing. So neither an averaged copy nor a saved model drags the
handle, the optimizer or the original model with it, and the copy does nothing when called. In a
pickle it is a function of Python's own that does nothing, which is read without this library.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Generic, TypeVar

_Owner = TypeVar("_Owner")


class WeakHook(Generic[_Owner]):
    """Base: a callable with a weak reference to what it works for, dropped by every copy."""

    def __init__(self, owner: _Owner | None = None) -> None:
        self._owner = None if owner is None else weakref.ref(owner)

    @property
    def owner(self) -> _Owner | None:
        """What the hook works for, or ``None`` in a copy and after that is gone."""
        return None if self._owner is None else self._owner()

    def __deepcopy__(self, memo: object) -> WeakHook[_Owner]:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


def remove_dead(hooks: dict[int, Any], *flags: dict[int, Any]) -> None:
    """Drop hooks of ours that came along in a copy, and what is said of them elsewhere."""
    dead = [key for key, hook in hooks.items() if _is_dead(hook)]
    for key in dead:
        for entries in (hooks, *flags):
            entries.pop(key, None)


def _is_dead(hook: object) -> bool:
    if isinstance(hook, WeakHook):
        return hook.owner is None
    return getattr(hook, "__func__", None) is contextlib.nullcontext.__exit__  # out of a pickle
