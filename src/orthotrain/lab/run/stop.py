"""A stop from outside, by SIGTERM or Ctrl-C: a training saves first, then it ends.

This module does not import torch.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

Asked = Callable[[], bool]
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

# What else may ask this process to stop: in a worker, its parent.
_others: list[Asked] = []


class Stopped(KeyboardInterrupt):
    """A training was told to stop. Its first argument is the number of the signal."""


def listen_to(asked: Asked) -> None:
    """From now on, trainings of this process stop, too, where ``asked()`` is true."""
    _others.append(asked)


@contextmanager
def held_signals() -> Iterator[Callable[[], int | None]]:
    """Hold SIGTERM and Ctrl-C back, and give a function that tells the one that came.

    A second signal is not held back: it raises :class:`Stopped` where the process is. Outside of
    the main thread, and where a signal is ignored, nothing changes.
    """
    came: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise Stopped(number)

    def asked() -> int | None:
        if not came and any(other() for other in _others):
            came.append(int(signal.SIGINT))
        return came[0] if came else None

    with _handled(_SIGNALS, take):
        yield asked


def pause(seconds: float) -> None:
    """Wait that long, or until this process is asked to stop.

    Raises:
        Stopped: It was asked.
    """
    with held_signals() as asked:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and asked() is None:
            time.sleep(min(left, 0.1))
        if (number := asked()) is not None:
            raise Stopped(number)


@contextmanager
def termination_raises() -> Iterator[None]:
    """Let SIGTERM raise :class:`Stopped`, as Ctrl-C raises KeyboardInterrupt."""

    def take(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled((signal.SIGTERM,), take):
        yield


@contextmanager
def _handled(
    numbers: tuple[signal.Signals, ...], take: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in numbers}
        # None belongs to a handler that was not installed from Python: it could not be put back.
        before = {n: old for n, old in found.items() if old not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, take)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
