"""Records of a run on their way out: a file of JSON lines, a TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Final, Protocol

from orthotrain._checks import described
from orthotrain._doors import checked
from orthotrain.diagnostics._run_file import BESIDE_RECORDS, RunFile
from orthotrain.errors import ConfigError
from orthotrain.methods.handle import Handle
from orthotrain.methods.protocol import Record
from orthotrain.methods.summary import Row, Summary

Line = dict[str, Any]

#: The kind of line that the records of a method become; of any other method it is its own name.
KINDS: Final = {
    "adaptive_low_rank": "event",
    "basis_stability": "stability",
    "condition_monitor": "condition",
    "nearest_orthogonal_gradient": "method",
    "optimal_learning_rate": "method",
}
# Lines of these kinds are of one method each, so they do not name it.
_ONE_METHOD: Final = frozenset({"stability", "condition"})
# Kinds of lines of the training itself.
_OWN: Final = BESIDE_RECORDS | {"step", "eval", *KINDS.values()}


@checked
class JsonlWriter:
    """Writes each record of a run from now on as a line of JSON, and sizes and ranks at a change.

    ``orthotrain report FILE.jsonl`` draws the file. A killed run loses no line of a finished
    step. One that is resumed goes on in the same file: what that holds beyond the checkpoint
    comes again, so it is cut off before the first new line. Apart from times, the file is that
    of a run that was never stopped, line by line.

    The first line holds the id of the run, which ``handle.state_dict()`` keeps. No other run
    writes to the file. Files of older versions have no id: a run whose state has none either goes
    on in them, cut by steps alone, and nobody notices a missing end. An empty file, or one that
    is deleted meanwhile, begins where the run is; its first line says at which record.

    In a group of processes the first one writes, and the others write nothing, whatever path they
    are given.

    Args:
        handle: What ``attach`` gave. To go on in a file, load the handle's state first.
        path: The file; its folder exists.

    Raises:
        CheckpointError: The file cannot be opened; it holds lines that are none of this class, or
            of another run, as of one that starts anew at step 0; or it ends before the handle's
            state does. The file is as it was then. At a record: something else wrote to the file.

    Note:
        Numbers that are not finite become null: JSON has none.
    """

    def __init__(self, handle: Handle, path: str | os.PathLike[str]) -> None:
        self._handle = handle
        writes = handle.run.processes.is_first
        self._file = RunFile(Path(path), handle.run) if writes else None
        handle.on_record(self._take)

    def _take(self, record: Record) -> None:
        if self._file is None:
            return
        begins = self._file.ready()
        lines = [line_of(record)]
        # Its last record of an update: sizes are those after it.
        if begins or record.get("event") == "update":
            lines += size_lines(self._handle.summary(), step=record["step"])
        content = "".join(json.dumps(_finite(line), allow_nan=False) + "\n" for line in lines)
        self._file.append(content.encode())


class Scalars(Protocol):
    """What takes a number by name and step, as ``torch.utils.tensorboard.SummaryWriter`` does."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Take one number."""
        ...


@checked
class TensorBoardWriter:
    """Gives each number of each record from now on to a TensorBoard.

    Tags are ``orthotrain/METHOD/LAYER/NAME``; what a record does not have is left out.

    Args:
        handle: What ``attach`` gave.
        writer: Anything with ``add_scalar(tag, value, global_step)``.

    Raises:
        ConfigError: ``writer`` has no ``add_scalar``.
    """

    def __init__(self, handle: Handle, writer: Scalars) -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise ConfigError(
                "TensorBoardWriter needs writer to have add_scalar, as torch.utils.tensorboard's "
                f"SummaryWriter has, got {described(writer)}"
            )
        self._writer = writer
        handle.on_record(self._take)

    def _take(self, record: Record) -> None:
        where = ("orthotrain", record.get("method"), record.get("layer"))
        prefix = "/".join(str(part) for part in where if part is not None)
        for name, value in record.items():
            if name != "step" and isinstance(value, Real) and not isinstance(value, bool):
                self._writer.add_scalar(f"{prefix}/{name}", float(value), record["step"])


# --- lines --------------------------------------------------------------------------------------


def line_of(record: Mapping[str, Any]) -> Line:
    """The line of a record: its kind, then what it holds."""
    method = str(record.get("method"))
    # A method that is called like a kind of the training's own lines must not mix with them.
    own = f"method {method}" if method in _OWN else method
    kind = KINDS.get(method, own)
    named = kind != method and kind not in _ONE_METHOD
    return {"kind": kind} | {k: v for k, v in record.items() if k != "method" or named}


def size_lines(summary: Summary, *, step: int) -> list[Line]:
    """Sizes of the whole model, then the rank of each layer."""
    ranks = [{"kind": "rank", "step": step} | rank_fields(row) for row in summary.rows]
    return [{"kind": "size", "step": step} | size_fields(summary), *ranks]


def size_fields(summary: Summary) -> dict[str, int]:
    """Numbers trained and stored, and bytes."""
    total = summary.total
    return {
        "trainable": total.trainable,
        "stored": total.stored,
        "dense": total.dense,
        "weight_bytes": total.weight_bytes,
        "gradient_bytes": total.gradient_bytes,
        "state_bytes": total.state_bytes,
    }


def rank_fields(row: Row) -> dict[str, Any]:
    """One layer's rank, form and shape."""
    full = full_rank(row)
    return {
        "layer": row.name,
        "rank": full if row.rank is None else row.rank,
        "full_rank": full,
        "form": row.form,
        "shape": [row.shape[0], math.prod(row.shape[1:])],
    }


def full_rank(row: Row) -> int:
    """The smaller side of a layer's matrix."""
    return min(row.shape[0], math.prod(row.shape[1:]))


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have, plain for those of other types."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
