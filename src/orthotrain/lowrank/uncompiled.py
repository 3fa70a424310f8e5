"""Code that ``torch.compile`` made runs uncompiled while passes are watched, and not beyond that.

Compiled code calls no new hooks, and compiling it anew takes longer than a watch. Torch has one
switch for the whole process, so who wants it is counted, and it is let go wherever training seems
to be over: with the last object that wanted it, and after many passes of evaluation.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Final

import torch

_numbers = itertools.count()
_wanting: set[int] = set()
_stance: Any = None

# More than the batches of a test set in most runs that evaluate between two steps.
_MOST_EVALUATIONS: Final = 64


class Uncompiled:
    """The wish of one watch that compiled code runs uncompiled."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._evaluations = 0
        self._let_go = self._keeps = False
        weakref.finalize(self, _end, self._number).atexit = False

    @property
    def active(self) -> bool:
        """Whether it holds now."""
        return self._number in _wanting

    def begin(self) -> None:
        """Run uncompiled from now on."""
        global _stance
        _wanting.add(self._number)
        if _stance is None:
            _stance = torch.compiler.set_stance("force_eager")

    def end(self) -> None:
        """Run as before, once nobody else wants it."""
        _end(self._number)
        self._let_go = self._keeps = False
        self._evaluations = 0

    def evaluated(self) -> None:
        """A pass without gradients; after many of them training may be over."""
        self._evaluations += 1
        if self.active and not self._keeps and self._evaluations > _MOST_EVALUATIONS:
            _end(self._number)
            self._let_go = True

    def step_ended(self) -> None:
        """Training goes on: where it was let go, from now on it is kept until its end."""
        self._evaluations = 0
        if self._let_go:
            self._let_go, self._keeps = False, True
            self.begin()


def _end(number: int) -> None:
    global _stance
    _wanting.discard(number)
    if not _wanting and _stance is not None:
        stance, _stance = _stance, None
        stance.__exit__(None, None, None)
