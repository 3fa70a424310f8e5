"""Storages of Optuna: opened, and signs of life of what runs; the one place that loads Optuna.

A trial of a study that runs is somebody's. Who has it gives signs of life. Where none came for a
while it is ended, and what it was for is free for others.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from orthotrain.errors import ConfigError, DataError
from orthotrain.extras import missing_package
from orthotrain.files import remedy

# Signs of life in the time after which a trial without any is ended.
_SIGNS: Final = 4
# What a database says where somebody else makes the same tables, and how often it is asked.
_AT_ONCE: Final = {"IntegrityError", "OperationalError", "ProgrammingError"}
_TRIES: Final = 3

_logger = logging.getLogger("orthotrain")


def load_optuna(what: str = "--storage") -> Any:
    """The package.

    Raises:
        MissingPackageError: It is not installed; the message names ``what`` needs it.
    """
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise missing_package(what, "optuna", extra="search") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def without_password(text: str) -> str:
    """A URL, or a line that has one, with stars in the place of who opens it."""
    return re.sub(r"://[^@/\s]*@", "://***@", text)


def opened(storage: str, *, what: str = "--storage") -> Any:
    """A storage: a file, which becomes a journal, or the URL of a database.

    Raises:
        MissingPackageError: Optuna is not installed.
        ConfigError: It cannot be opened.
    """
    optuna = load_optuna(what)
    if "://" in storage:
        return _database(optuna, storage)
    path = Path(storage)
    if path.is_dir():
        raise ConfigError(f"--storage: {path} is a folder; name a file in it")
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def _database(optuna: Any, url: str) -> Any:
    """The storage at a URL. Of two commands that make its tables at once, one tries again."""
    for left in reversed(range(_TRIES)):
        try:
            return optuna.storages.get_storage(url)
        except Exception as error:  # whatever the package of a database raises
            if left and type(error).__name__ in _AT_ONCE:
                time.sleep(1.0)
                continue
            why = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"--storage: {without_password(url)} cannot be opened ({why}); need a file, or a "
                "URL that optuna.storages.get_storage takes"
            ) from error
    raise AssertionError


@contextmanager
def telling(where: str) -> Iterator[None]:
    """Turn what Optuna and the system raise into errors with advice."""
    where = without_password(where)
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--storage: {where} cannot be used ({error}); {remedy(error)}"
        ) from error
    except (KeyError, AssertionError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(
            f"--storage: {where} cannot be read as a journal of Optuna "
            f"({type(error).__name__}: {error}); choose another file"
        ) from error


class Signs:
    """Signs of life of the trials of a study that run.

    Args:
        storage: Of Optuna.
        where: What the user calls it.
        stale_seconds: A trial without a sign for so long is somebody's no more.
    """

    def __init__(self, storage: Any, *, where: str, stale_seconds: float) -> None:
        self._storage = storage
        self._where = where
        self._stale = stale_seconds
        # Last sign of each trial, and when it was first seen by the clock of this process.
        self._seen: dict[int, tuple[object, float]] = {}

    @property
    def seconds_between(self) -> float:
        """Time between two signs."""
        return self._stale / _SIGNS

    def alive(self, trial: Any) -> bool:
        """Whether a running trial gave a sign lately."""
        now, sign = time.monotonic(), trial.user_attrs.get("sign")
        last, since = self._seen.get(trial._trial_id, (None, now))
        if last != sign or trial._trial_id not in self._seen:
            since = now
        self._seen[trial._trial_id] = (sign, since)
        return now - since <= self._stale

    @contextmanager
    def given(self, trial: int, what: str) -> Iterator[None]:
        """Give signs for a trial inside.

        Where others have ended it, because this process stood still for too long, the process ends
        at once: another one has taken over.
        """
        ended = threading.Event()
        thread = threading.Thread(target=self._live, args=(trial, what, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _live(self, trial: int, what: str, ended: threading.Event) -> None:
        finished = load_optuna().exceptions.UpdateFinishedTrialError
        sign = 0
        while not ended.wait(self.seconds_between):
            sign += 1
            try:
                self._storage.set_trial_user_attr(trial, "sign", sign)
            except finished:
                _logger.error(
                    "%s: this process stood still for over %g s and another one has taken the "
                    "training over; it ends now", what, self._stale,
                )  # fmt: skip
                os._exit(1)
            except Exception as error:  # such as a disk that is full for a while
                _logger.warning("%s: no sign of life could be written (%s)", self._where, error)
