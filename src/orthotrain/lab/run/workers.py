"""Worker processes that train: they report progress, and end when their parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from orthotrain.lab.run.progress import OnProgress, Progress

Key = TypeVar("Key", bound=Hashable)

# Set once in each worker process by _begin; a worker is single-threaded apart from its watchdog.
_channel: list[tuple[SimpleQueue[Progress | None], Event]] = []


class _Stopped(Exception):
    """This training was told to stop."""


class Workers(Generic[Key]):
    """A pool whose tasks report progress to the parent and stop together when one fails.

    Args:
        count: Number of processes.
        threads: CPU threads each.
        on_progress: Called in a thread of this process.
    """

    def __init__(self, count: int, *, threads: int, on_progress: OnProgress) -> None:
        # A forked child of a process with threads may hang; torch starts threads.
        context = multiprocessing.get_context("spawn")
        self._messages: SimpleQueue[Progress | None] = context.SimpleQueue()
        self._stop = context.Event()
        self._pool = ProcessPoolExecutor(
            count,
            mp_context=context,
            initializer=_begin,
            initargs=(self._messages, self._stop, threads),
        )
        self._running: dict[Future[None], Key] = {}
        self._listener = threading.Thread(target=self._listen, args=(on_progress,), daemon=True)
        self._listener.start()

    def __enter__(self) -> Workers[Key]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._messages.put(None)
        self._listener.join()
        self._messages.close()

    def submit(self, key: Key, work: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Call ``work(*args, **kwargs, on_progress=...)`` in a worker."""
        self._running[self._pool.submit(_work, work, args, kwargs)] = key

    def wait_for_one(self) -> set[Key]:
        """Wait until something ends and return its keys.

        Raises:
            Exception: What a task raised.
        """
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        return {self._running.pop(future) for future in done}

    def _listen(self, on_progress: OnProgress) -> None:
        while (message := self._messages.get()) is not None:
            on_progress(message)


def _begin(messages: SimpleQueue[Progress | None], stop: Event, threads: int) -> None:
    # Ctrl-C reaches the whole process group; the parent stops the workers in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _channel.append((messages, stop))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # The parent was killed: nobody listens, and its lock on the folder is gone.
        os._exit(1)


def _work(work: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    messages, stop = _channel[0]

    def report(progress: Progress) -> None:
        if stop.is_set():
            raise _Stopped
        messages.put(progress)

    work(*args, **kwargs, on_progress=report)
