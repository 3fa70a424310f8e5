"""The file of one run's lines: whose it is, and where a resumed run goes on in it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from orthotrain.errors import CheckpointError
from orthotrain.files import write_atomically
from orthotrain.methods.protocol import Run

#: Kinds of lines that are no record: the first line, and sizes and ranks after a record.
BESIDE_RECORDS: Final = frozenset({"run", "size", "rank"})
_CHOOSE: Final = "choose another path"


class _Line(NamedTuple):
    fields: dict[str, Any]
    raw: bytes


class RunFile:
    """Lines of one run and of no other; its first line holds the run's id.

    Args:
        path: Its folder exists.
        run: Gets an id where it has none and the file begins with it.

    Raises:
        CheckpointError: The file cannot be opened, is of something else or of another run, or
            ends before the run does.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self._path, self._run = path, run
        self._id: str | None = None
        self._written: int | None = None  # records of the run, when the last one was added
        try:
            with path.open("ab"):
                content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"JsonlWriter needs to append to {path}, got: {error}; make its folder or "
                "choose another file"
            ) from error
        if content:
            self._kept(content, run.recorded)
            self._size, self._id = len(content), run.id
        else:
            self._begin(run.recorded)

    def ready(self) -> bool:
        """Cut off what comes again; whether no record is left, so that the file begins here.

        Called while a record is told, which the run counts already.

        Raises:
            CheckpointError: Something else wrote to the file.
        """
        before = self._run.recorded - 1
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            self._begin(before)
            return True
        if size != self._size:
            raise CheckpointError(
                f"JsonlWriter alone may write to {self._path}: it left {self._size} bytes, now "
                f"there are {size}. Give each run and each writer a path of its own"
            )
        if self._written == before and self._id == self._run.id:
            return False
        content = self._path.read_bytes()
        # Nothing but our own first line: the handle's state may have been loaded since.
        moved = self._id != self._run.id and content.count(b"\n") == 1
        kept = b"" if moved else self._kept(content, before)
        if not kept:
            self._begin(before)
            return True
        if kept != content:
            write_atomically(self._path, kept)
        self._size, self._id = len(kept), self._run.id
        return kept.count(b"\n") == 1

    def append(self, content: bytes) -> None:
        """Add the lines of the record that is told."""
        with self._path.open("ab") as file:
            file.write(content)
        self._size += len(content)
        self._written = self._run.recorded

    def _begin(self, records: int) -> None:
        run = self._run
        if run.id is None:
            run.id = uuid.uuid4().hex
        header = {"kind": "run", "step": run.step, "run": run.id, "records": records}
        content = json.dumps(header).encode() + b"\n"
        write_atomically(self._path, content)
        self._size, self._id = len(content), run.id

    def _kept(self, content: bytes, records: int) -> bytes:
        """What the file holds of the first ``records`` records of the run."""
        lines, run = _read(self._path, content), self._run
        first = lines[0].fields
        theirs = first["run"] if first["kind"] == "run" else None
        if theirs != run.id or (theirs is None and run.step == 0):
            raise CheckpointError(self._of_another(theirs))
        if theirs is None:
            return b"".join(line.raw for line in lines if line.fields["step"] < run.step)
        begins = first["records"]
        if records < begins:
            return b""
        kept, found = [lines[0]], begins
        for line in lines[1:]:
            found += line.fields["kind"] not in BESIDE_RECORDS
            if found > records:
                break
            kept.append(line)
        if found < records:
            raise CheckpointError(
                f"JsonlWriter needs a file with the {records:,} records until step {run.step}; "
                f"{self._path} ends at step {lines[-1].fields['step']}, with {found:,}. Put the "
                f"whole file back, or {_CHOOSE}: a new file says at which record it begins"
            )
        return b"".join(line.raw for line in kept)

    def _of_another(self, theirs: str | None) -> str:
        named = "an older version, without an id" if theirs is None else f"run {theirs}"
        if self._run.step == 0:
            return (
                f"JsonlWriter: {self._path} holds lines of {named}, and this run starts at step "
                f"0. To start anew, {_CHOOSE} or delete the file; to go on in it, load the "
                "handle's state before you make the writer"
            )
        ours = f"run {self._run.id}" if self._run.id else "a run without an id"
        return (
            f"JsonlWriter: {self._path} holds lines of {named}, and the handle's state is of "
            f"{ours}; give the file that this run began, or {_CHOOSE}"
        )


def _read(path: Path, content: bytes) -> Sequence[_Line]:
    """The lines; half a last one, of a killed run, is left out."""
    lines: list[_Line] = []
    for i, raw in enumerate(content.splitlines(keepends=True)):
        if not raw.endswith(b"\n") and lines:
            break
        try:
            fields = json.loads(raw)
        except ValueError:
            fields = None
        if not _is_line(fields):
            raise _not_ours(path, i, raw)
        lines.append(_Line(fields, raw))
    first = lines[0].fields
    if first["kind"] == "run":
        known = isinstance(first.get("run"), str) and isinstance(first.get("records"), int)
    else:  # files of older versions have sizes after their first record
        known = len(lines) > 1 and {"kind": "size"}.items() <= lines[1].fields.items()
        known = known and "stored" in lines[1].fields
    if not known or not lines[0].raw.endswith(b"\n"):
        raise _not_ours(path, 0, lines[0].raw)
    return lines


def _is_line(fields: object) -> bool:
    return (
        isinstance(fields, dict)
        and isinstance(fields.get("kind"), str)
        and type(fields.get("step")) is int
    )


def _not_ours(path: Path, i: int, raw: bytes) -> CheckpointError:
    return CheckpointError(
        f"JsonlWriter needs a file that it wrote, or a new one; line {i + 1} of {path} is "
        f"{raw[:60]!r}. Choose another file; this one is as it was"
    )
