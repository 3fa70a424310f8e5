"""Work in a process that dies of what is chosen: a moment, a change to a file, a file too large.

A forked process starts at once, with everything loaded, and ends as a killed one does: nothing is
cleaned up.
"""

import errno
import mmap
import os
import resource
import signal
import sys
import warnings
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from orthotrain.errors import OrthotrainError

SECONDS = 600
# What changes files; ``open`` counts where it may write.
_CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.truncate", "os.rmdir"}
_ENDED, _TYPED, _RAW = 0, 3, 4


@dataclass(frozen=True)
class End:
    """How the process ended.

    Attributes:
        kind: ``ended``, ``killed``, ``typed`` or ``raw`` (an error), ``hang`` or ``crash``.
        text: Of the error.
        points: Changes to files that it began.
        seconds: Of its processor.
    """

    kind: str
    text: str
    points: int
    seconds: float


def need_fork():
    """Skip where a process cannot be copied with torch in it."""
    if not hasattr(os, "fork") or torch.cuda.is_available():
        pytest.skip("needs os.fork, and a torch that has started no thread for a GPU")


def end_of(work, **deadly):
    """Let a process do ``work`` and say how it ended; arguments as of :func:`start`."""
    return start(work, **deadly)()


def start(work, *, seconds=None, point=None, room=None, limit=None, full=None, wait=SECONDS):
    """Begin ``work`` in a process; gives a function that waits for its end and says how it was.

    Args:
        work: A function without arguments.
        seconds: It is killed after so much time of its processor.
        point: It is killed right before its change to a file of this number, from 1.
        room: It is killed in the middle of the write that makes a file larger, in bytes.
        limit: No file can grow larger, in bytes.
        full: From the change to a file of this number on, no file can be made or written.
        wait: Seconds after which it hangs.
    """
    need_fork()
    reads, writes = os.pipe()
    count = mmap.mmap(-1, 8)
    pid = os.fork()
    if pid == 0:
        status = _RAW
        try:
            os.close(reads)
            warnings.simplefilter("ignore")
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(wait)
            _watch(count, point, full)
            _limit(seconds, room, limit)
            work()
            status = _ENDED
        except BaseException as error:
            status = _TYPED if isinstance(error, OrthotrainError) else _RAW
            os.write(writes, f"{type(error).__name__}: {error}".encode()[:2000])
        finally:
            os._exit(status)
    os.close(writes)
    return partial(_end, pid, reads, count)


def _end(pid, reads, count):
    with os.fdopen(reads, encoding="utf-8", errors="replace") as file:
        text = file.read()
    _, status, used = os.wait4(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kinds = {signal.SIGALRM: "hang", signal.SIGSEGV: "crash", signal.SIGABRT: "crash"}
        kind = kinds.get(number, "killed")
    else:
        kind = {_ENDED: "ended", _TYPED: "typed"}.get(os.waitstatus_to_exitcode(status), "raw")
    return End(kind, text, int.from_bytes(count[:8], "little"), used.ru_utime + used.ru_stime)


def _limit(seconds, room, limit):
    if seconds is not None:
        # By the clock of the processor, so that a busy machine changes nothing. Nobody handles it.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
    if room is not None:
        # Python ignores it, and gets an error; as it is by default, the process ends.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _watch(count, point, full):
    def begins(removes=False):
        number = int.from_bytes(count[:8], "little") + 1
        count[:8] = number.to_bytes(8, "little")
        if number == point:
            os.kill(os.getpid(), signal.SIGKILL)
        if full is not None and number >= full and not removes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def hook(event, arguments):
        if event not in _CHANGES:
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        begins(removes=event in ("os.remove", "os.rmdir"))

    sync = os.fsync

    def fsync(file):
        begins()
        sync(file)

    os.fsync = fsync
    sys.addaudithook(hook)
