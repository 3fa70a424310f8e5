"""Temperatures of electricity transformers (ETT): seven series over two years."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from orthotrain._names import did_you_mean
from orthotrain.data.packed import data_path
from orthotrain.errors import ConfigError, DataError

ETTName = Literal["ettm1", "ettm2", "etth1", "etth2"]
#: Months that train, validate and test, of 30 days each, as everybody splits these files.
MONTHS: Final = (12, 4, 4)
_FILES: Final = {"ettm1": "ETTm1", "ettm2": "ETTm2", "etth1": "ETTh1", "etth2": "ETTh2"}
_DAYS: Final = 30
# Largest value of each feature of a date.
_CALENDAR: Final = (59, 23, 6, 30, 365)


@dataclass(frozen=True)
class Stretch:
    """One part of the series, from the first step that is read to the last that is forecast.

    Attributes:
        values: ``(time, series)`` float32, scaled.
        dates: ``(time, 5)`` float32: minute, hour, day of week, of month and of year, each from
            -1/2 to 1/2.
    """

    values: Float[Tensor, "time series"]
    dates: Float[Tensor, "time calendar"]

    def to(self, device: torch.device) -> Stretch:
        """The same on another device."""
        return Stretch(self.values.to(device), self.dates.to(device))

    def places(self, *, read: int, ahead: int) -> int:
        """How many windows begin in it.

        Raises:
            DataError: It is shorter than one window.
        """
        places = len(self.values) - read - ahead + 1
        if places < 1:
            raise DataError(
                f"ETT: a part of {len(self.values)} steps is too short for windows that read "
                f"{read} and forecast {ahead} steps; use a longer file or shorter windows"
            )
        return places

    def windows(
        self, starts: Int64[Tensor, " batch"], *, read: int, ahead: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Windows that begin at ``starts``.

        Returns:
            ``(past, dates, future)``: ``(batch, read, series)``, ``(batch, read + ahead, 5)`` and
            ``(batch, ahead, series)``.
        """
        rows = (starts[:, None] + torch.arange(read + ahead)).to(self.values.device)
        values = self.values[rows]
        return values[:, :read], self.dates[rows], values[:, read:]


@dataclass(frozen=True)
class SeriesData:
    """Series in three parts, scaled by mean and deviation of the training part.

    The test part stays behind a function: a run reads it once, after its last step.

    Attributes:
        names: Of the series.
        train: The first twelve months.
        validation: The next four, and before them what its first window reads.
        read_test: Gives the last four months, likewise.
        sha256: Of the unpacked file.
    """

    names: tuple[str, ...]
    train: Stretch
    validation: Stretch
    read_test: Callable[[], Stretch]
    sha256: str

    def to(self, device: torch.device) -> SeriesData:
        """The same on another device."""
        read_test = self.read_test
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            read_test=lambda: read_test().to(device),
        )


def load_ett(name: ETTName, *, data: str | None = None, read: int) -> SeriesData:
    """One of the four files, split 12/4/4 months and scaled by its training part.

    Args:
        name: ``ettm1``, ``ettm2``: every 15 minutes; ``etth1``, ``etth2``: hourly.
        data: The file (``.csv`` or ``.csv.gz``), or a folder that has it, or that has it in a
            folder ``ett``; ORTHOTRAIN_DATA when None.
        read: Steps that a window reads: so many from before its part may be read.

    Raises:
        ConfigError: There is no such file among the four.
        DataError: The file is missing, damaged or too short.

    Source:
        Zhou et al. (2021), Informer, arXiv:2012.07436; split as in arXiv:2106.13008.
    """
    if name not in _FILES:
        raise ConfigError(
            f"ETT: name={name!r} does not exist; {did_you_mean(name, _FILES)}choose from "
            f"{', '.join(_FILES)}"
        )
    path = _find(name, data)
    content = _content(path)
    names, dates, values = _table(path, content)
    per_month = _DAYS * (24 if name.startswith("etth") else 96)
    ends = np.cumsum([months * per_month for months in MONTHS])
    if len(values) < ends[-1]:
        raise DataError(
            f"ETT: {path} has {len(values)} rows, need {ends[-1]} for {sum(MONTHS)} months; use "
            "the published file"
        )
    train = values[: ends[0]]
    scaled = (values - train.mean(axis=0)) / np.maximum(train.std(axis=0), 1e-12)
    calendar = np.array([_features(date) for date in dates[: ends[-1]]], np.float32)

    def part(first: int, last: int) -> Stretch:
        return Stretch(
            torch.from_numpy(scaled[first:last].astype(np.float32)),
            torch.from_numpy(calendar[first:last]),
        )

    return SeriesData(
        names=names,
        train=part(0, ends[0]),
        validation=part(ends[0] - read, ends[1]),
        read_test=lambda: part(ends[1] - read, ends[2]),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _find(name: ETTName, data: str | None) -> Path:
    file = f"{_FILES[name]}.csv"
    place, origin = data_path(data, title=file, need=f"{file} or {file}.gz")
    folders = (place, place / "ett")
    files = [folder / end for folder in folders for end in (file, f"{file}.gz")]
    found = next((path for path in (place, *files) if path.is_file()), None)
    if found is None:
        raise DataError(
            f"ETT: {place} (from {origin}) has no {file} or {file}.gz, nor has its folder ett; "
            "pass --data.dir DIR or set ORTHOTRAIN_DATA to the folder that holds it"
        )
    return found


def _content(path: Path) -> bytes:
    try:
        packed = path.read_bytes()
        return gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError) as error:
        raise DataError(f"ETT: {path} cannot be read: {error}; copy the file anew") from error


def _table(path: Path, content: bytes) -> tuple[tuple[str, ...], list[datetime], np.ndarray]:
    try:
        rows = list(csv.reader(io.StringIO(content.decode())))
        head, body = rows[0], rows[1:]
        if len(head) < 2 or head[0] != "date":
            raise ValueError(f"its first line is {','.join(head)[:60]!r}, not date,NAME,...")
        dates = [datetime.fromisoformat(row[0]) for row in body]
        values = np.array([row[1:] for row in body], np.float64)
        if values.shape != (len(body), len(head) - 1) or not np.isfinite(values).all():
            raise ValueError("a value is missing or not finite")
    except (ValueError, IndexError) as error:
        raise DataError(
            f"ETT: {path} is no table of dates and numbers: {error}; use the published file"
        ) from error
    return tuple(head[1:]), dates, values


def _features(date: datetime) -> Sequence[float]:
    raw = (date.minute, date.hour, date.weekday(), date.day - 1, date.timetuple().tm_yday - 1)
    return [value / most - 0.5 for value, most in zip(raw, _CALENDAR, strict=True)]
