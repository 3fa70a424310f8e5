"""The lines of ``metrics.jsonl``: how one file of them is read, and one number of a line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from orthotrain.errors import DataError

Row = Mapping[str, object]

# A resumed run records some steps twice; the fields that tell two lines of a step apart.
_IDENTITY: Final = ("step", "layer", "split", "method", "event", "what")


def number(row: Row, key: str) -> float:
    """The number under ``key``; NaN where it is missing, null or no number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


def text(row: Row, key: str, default: str = "") -> str:
    """The value under ``key`` as text; ``default`` where it is missing or null."""
    value = row.get(key)
    return default if value is None else str(value)


def read_text(file: Path) -> str:
    """The content of a file, with a mark in place of what is no UTF-8.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(
            f"report could not read {file}: {error.strerror}. Check that it is readable."
        ) from error


def read_metrics(file: Path) -> tuple[dict[str, list[Row]], list[str]]:
    """Read a ``metrics.jsonl``.

    Args:
        file: One JSON object per line, each with a ``kind``.

    Returns:
        The rows by kind, ordered by step (of two rows for the same thing at the same step, as a
        resumed run leaves them, the later one), and sentences on what was left out.

    Raises:
        DataError: A line other than the last is no JSON object, has no ``kind``, or no number
            as ``step``; the message carries the line's number.
    """
    lines = read_text(file).splitlines()
    kept: dict[str, dict[tuple[object, ...], Row]] = {}
    notes: list[str] = []
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse_line(line)
        if row is None:
            if index == len(lines):
                notes.append("the last line of metrics.jsonl is cut off (a killed run); left out.")
                continue
            raise DataError(
                f"report needs a JSON object with a 'kind' in every line of {file}; line {index} "
                f"of {len(lines)} is {line[:60]!r}. Remove that line, or train this seed again."
            )
        kind = str(row["kind"])
        if not math.isfinite(number(row, "step")):
            raise DataError(
                f"report needs a number as 'step' in every line of {file}; line {index} of kind "
                f"'{kind}' has {', '.join(row)}. Was it written by another version?"
            )
        kept.setdefault(kind, {})[tuple(str(row.get(field)) for field in _IDENTITY)] = row
    steps = kept.get("step", {}).values()
    lost = sum("loss" in row and math.isnan(number(row, "loss")) for row in steps)
    if lost:
        notes.append(f"the training loss was not finite in {lost} records; the curve has gaps.")
    return {kind: _by_step(rows.values()) for kind, rows in kept.items()}, notes


def _parse_line(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "kind" in row else None


def _by_step(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: number(row, "step"))


def field(key: str, *, scale: float = 1.0, **where: object) -> Callable[[Row], float]:
    """Reads ``key`` times ``scale`` from a line; NaN where a field of ``where`` differs."""
    return lambda row: (
        number(row, key) * scale
        if all(row.get(name) == value for name, value in where.items())
        else math.nan
    )
