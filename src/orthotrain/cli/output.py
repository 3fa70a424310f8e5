"""Standard output that cannot end a training: closed, full, or of another encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO


def drop_output(stream: IO[str]) -> None:
    """Let what a stream still holds go nowhere: the flush at exit would fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def steady_output() -> Iterator[None]:
    """What is printed inside may fail to arrive; whatever runs goes on, and says so once."""
    before = sys.stdout
    sys.stdout = _Steady(before)
    try:
        yield
    finally:
        sys.stdout = before


def print_what_it_can() -> None:
    """Show a character that the encoding of the output lacks by its code, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Steady(io.TextIOBase):
    """Passes text on until that fails, then drops it."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read by those who print tables
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def _give_up(self, error: OSError) -> None:
        assert self._stream is not None
        drop_output(self._stream)
        self._stream = None
        print(
            f"orthotrain: standard output takes no more text ({error.strerror or error}); the run "
            "goes on, and its folder has the record",
            file=sys.stderr,
            flush=True,
        )
