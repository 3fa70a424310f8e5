"""The base of hooks that copies of a model can carry harmlessly.

``copy.deepcopy`` and pickle take a module's hooks along. Each hook holds what it works for weakly
and is copied as one that holds nothing. So neither an averaged copy nor a saved model drags the
handle, the optimizer or the original model with it, and the copy does nothing when called.
"""

from __future__ import annotations

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

    def __reduce__(self) -> tuple[type[WeakHook[_Owner]], tuple[()]]:
        return type(self), ()


def remove_dead(hooks: dict[int, Any], *flags: dict[int, Any]) -> None:
    """Drop hooks of ours that came along in a copy, and what is said of them elsewhere."""
    dead = [k for k, hook in hooks.items() if isinstance(hook, WeakHook) and hook.owner is None]
    for key in dead:
        for entries in (hooks, *flags):
            entries.pop(key, None)
