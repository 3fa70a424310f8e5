"""Worker processes that train: they report progress, and end when their parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from typing import Any

import torch

from orthotrain.lab.run.progress import OnProgress, Progress
from orthotrain.lab.run.stop import Stopped, listen_to

Submit = Callable[..., Future[None]]

# Set once in each worker process by _begin; a worker is single-threaded apart from its watchdog.
_channel: list[SimpleQueue[Progress | None]] = []


@contextmanager
def workers_that_report(count: int, *, threads: int, on_progress: OnProgress) -> Iterator[Submit]:
    """A function that calls ``work(*args, on_progress=...)`` in a worker process.

    Args:
        count: Number of processes.
        threads: CPU threads of each.
        on_progress: Called in a thread of this process. When the block ends, trainings that
            still run stop after their step, with a checkpoint.
    """
    # A forked child of a process with threads may hang; torch starts threads.
    context = multiprocessing.get_context("spawn")
    messages: SimpleQueue[Progress | None] = context.SimpleQueue()
    stop = context.Event()

    def listen() -> None:
        while (message := messages.get()) is not None:
            on_progress(message)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        with ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin, initargs=(messages, stop, threads)
        ) as pool:
            try:
                yield lambda work, *args: pool.submit(_work, work, args)
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        messages.put(None)
        listener.join()
        messages.close()


def _begin(messages: SimpleQueue[Progress | None], stop: Event, threads: int) -> None:
    # Ctrl-C reaches the whole process group; the parent stops the workers in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _channel.append(messages)
    listen_to(stop.is_set)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # The parent was killed: nobody listens, and its lock on the folder is gone.
        os._exit(1)


def _work(work: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        work(*args, on_progress=_channel[0].put)
    except Stopped as stopped:
        if stopped.args[0] == signal.SIGTERM:
            # Sent to this process alone, which ends; the parent says so.
            os._exit(128 + signal.SIGTERM)
        raise
