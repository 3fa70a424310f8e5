"""Worker processes that train: they report progress, and end when their parent does.

Each has a pipe of its own. A lock or queue that several share would stay locked for ever where one
of them is killed while it holds it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from orthotrain.errors import WorkerError
from orthotrain.lab.run.progress import OnProgress, Progress
from orthotrain.lab.run.stop import Stopped, listen_to

Submit = Callable[..., Future[None]]
# What a worker sends besides progress: that its work ended, and with which error.
_Ended = tuple[BaseException | None]


@contextmanager
def workers_that_report(count: int, *, threads: int, on_progress: OnProgress) -> Iterator[Submit]:
    """A function that calls ``work(*args, on_progress=...)`` in a worker process.

    Its future raises what the work raised, or WorkerError where the process ended before.

    Args:
        count: Number of processes.
        threads: CPU threads of each.
        on_progress: Called in threads of this process, one call at a time. When the block ends,
            trainings that still run stop after their step, with a checkpoint.
    """
    told = threading.Lock()

    def tell(progress: Progress) -> None:
        with told:
            on_progress(progress)

    workers: list[_Worker] = []
    idle: list[_Worker] = []
    begins, ended = threading.Lock(), threading.Event()

    def run(work: Callable[..., None], *args: Any) -> None:
        with begins:
            if ended.is_set():
                raise WorkerError("it was not begun")
            if not idle:
                idle.append(_Worker(threads))
                workers.append(idle[-1])
            worker = idle.pop()
            worker.begin(work, args)
        worker.wait(tell)
        idle.append(worker)

    try:
        with ThreadPoolExecutor(count) as pool:
            try:
                yield lambda work, *args: pool.submit(run, work, *args)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                with begins:
                    ended.set()
                    for worker in workers:
                        worker.stop()
    finally:
        for worker in workers:
            worker.join()


class _Worker:
    """A process and this end of its pipe."""

    def __init__(self, threads: int) -> None:
        # A forked child of a process with threads may hang; torch starts threads.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads))
        self._process.start()
        # Only the process holds it now, so its end is the end of the pipe.
        theirs.close()

    def begin(self, work: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Hand work to the process, which has none."""
        with suppress(OSError):  # It has ended; wait() says so.
            self._pipe.send((work, args))

    def wait(self, on_progress: OnProgress) -> None:
        """Wait for the end of the work; raise what it raised."""
        while isinstance(message := self._message(), Progress):
            on_progress(message)
        if (failure := message[0]) is not None:
            raise failure

    def _message(self) -> Progress | _Ended:
        try:
            message: Progress | _Ended = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise WorkerError(_end_of(self._process.exitcode or 0)) from error
        return message

    def stop(self) -> None:
        """Let the training stop after its step, and the process end."""
        with suppress(OSError):
            self._pipe.send(None)

    def join(self) -> None:
        """Wait for its end."""
        self._process.join()
        self._pipe.close()


def _end_of(status: int) -> str:
    """How a process ended, in words."""
    number = -status if status < 0 else status - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"it ended with exit status {status}"
    memory = ", perhaps for lack of memory" if number == signal.SIGKILL else ""
    return f"it was ended from outside by {name}{memory}"


def _serve(pipe: Connection, threads: int) -> None:
    # Ctrl-C reaches the whole process group; the parent stops the workers in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    # While it trains, all that comes is the word to stop, or the end of the parent.
    listen_to(pipe.poll)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        while (task := pipe.recv()) is not None:
            work, args = task
            pipe.send(_ended(work, args, pipe.send))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # The parent was killed: nobody listens, and its lock on the folder is gone.
        os._exit(1)


def _ended(
    work: Callable[..., None], args: tuple[Any, ...], report: Callable[[Any], None]
) -> _Ended:
    try:
        work(*args, on_progress=report)
    except Stopped as stopped:
        if stopped.args[0] == signal.SIGTERM:
            # Sent to this process alone, which ends; the parent says so.
            os._exit(128 + signal.SIGTERM)
        return (stopped,)
    except Exception as error:
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it cannot travel as it is
            return (RuntimeError(traceback.format_exc()),)
        return (error,)
    return (None,)
