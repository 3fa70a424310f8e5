"""The folder of a run: what lies where, written so that a killed run loses and doubles nothing.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from orthotrain.errors import CheckpointError, ConfigError, DataError
from orthotrain.files import remedy, write_atomically
from orthotrain.lab.run.config import RunConfig, Variant
from orthotrain.lab.run.experiment import Experiment

SCHEMA = 1


def finite(value: object) -> object:
    """``value`` with NaN and infinities replaced by None, which JSON can say."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what the system says about a failed write into an error with advice.

    Raises:
        CheckpointError: The block raised an OSError, such as a full disk.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error}); the last good checkpoint is intact; "
            f"{remedy(error)}, then run the same command again"
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    text = json.dumps(finite(content), indent=2, allow_nan=False) + "\n"
    with saving(path):
        write_atomically(path, text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: The file is missing or holds something else.
    """
    try:
        content = json.loads(_text_of(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); need a JSON file") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; need a JSON object")
    return content


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); {remedy(error)}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings by name.

    Raises:
        ConfigError: The file is missing or holds something else.
    """
    # Here, so that a checkpoint can be read where the extra of the laboratory is missing.
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(content, default=str, skipkeys=True)  # A part that holds itself has no end.
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; need a YAML file of settings") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); {remedy(error)}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no configuration ({error}); need settings in YAML") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        kind = "names that are no text" if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"{path} is no configuration ({kind}); need settings by name")
    return content


@dataclass(frozen=True)
class SeedFolder:
    """Files of one (variant, seed).

    Attributes:
        path: Where they lie.
        settings: Those of its run that its numbers depend on; a checkpoint says them.
    """

    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the last one."""
        return self.path / "checkpoint.previous.pt"

    @property
    def damaged_checkpoint(self) -> Path:
        """A last checkpoint that could not be taken."""
        return self.path / "checkpoint.damaged.pt"

    @property
    def result(self) -> Path:
        """Written last: its presence says that this training is done."""
        return self.path / "result.json"


@dataclass(frozen=True)
class RunFolder:
    """Files of a whole run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def run(self) -> Path:
        """Environment, command, variants and seeds."""
        return self.path / "run.json"

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.path / "report"

    def seed(self, variant: str, seed: int) -> SeedFolder:
        """The folder of one training."""
        return SeedFolder(self.path / "variants" / variant / f"seed-{seed}")

    def results(self, variant: str, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
        """Results of all finished seeds of a variant."""
        files = [self.seed(variant, seed).result for seed in seeds]
        return [read_json(file) for file in files if file.exists()]

    @contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Make the folder and keep a second command out of it; ends with this process, too.

        Args:
            shared: Let in others that ask for the same; they divide the trainings.

        Raises:
            ConfigError: The folder cannot be written, or another process trains in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a+", encoding="ascii")
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error
        with file:
            self._lock(file, shared=shared)
            yield

    def _lock(self, file: IO[str], *, shared: bool) -> None:
        try:
            import fcntl
        except ImportError:  # Not on Windows, where a second command must be avoided by hand.
            return
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is training in {self.path}; wait for it, or choose another "
                "folder with --run-dir. Several commands divide the trainings of one folder where "
                "all of them name the same --storage"
            ) from error

    def open(self, config: RunConfig, *, shared: bool = False) -> None:
        """Create the folder, or check that it belongs to the same configuration.

        A folder in which nothing was trained, such as after a wrong folder of data, is begun anew.

        Args:
            config: Of the run.
            shared: Other commands may be about to train in it.

        Raises:
            ConfigError: The folder holds a run with other settings, or cannot be written.
        """
        import yaml

        resolved = plain(config)
        try:
            if self.config.exists():
                previous = read_settings(self.config)
                if shared or previous == resolved or not self._empty():
                    self._require_same(previous, resolved)
                    return
                self.run.unlink(missing_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(resolved, sort_keys=False)
            write_atomically(self.config, text.encode())
        except OSError as error:
            raise self._unwritable(error) from error

    def _empty(self) -> bool:
        """Whether it has nothing but what is written before a training."""
        files = {file for file in self.path.rglob("*") if file.is_file()}
        return files <= {self.config, self.run, self.path / ".lock"}

    def _unwritable(self, error: OSError | ValueError) -> ConfigError:
        advice = remedy(error) if isinstance(error, OSError) else "choose another name"
        return ConfigError(
            f"{self.path} cannot be written ({error}); {advice}. Another folder can be given with "
            "--run-dir"
        )

    def _require_same(self, previous: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
        if changed := differences(previous, resolved):
            raise ConfigError(
                f"{self.path} holds a run with other settings ({'; '.join(changed[:4])}); "
                "choose another folder with --run-dir, or continue that run with --resume"
            )

    def describe(
        self,
        experiment: Experiment,
        config: RunConfig,
        *,
        variants: Sequence[Variant],
        environment: Mapping[str, Any],
    ) -> None:
        """Write run.json once; a resumed run keeps the record of its start.

        Raises:
            DataError: There is one, and it is no description of a run.
            ConfigError: It is one of another version.
        """
        if self.run.exists():
            if (schema := read_json(self.run).get("schema")) != SCHEMA:
                raise ConfigError(
                    f"{self.run} has schema {schema!r}, this version reads {SCHEMA}; restore it, "
                    "or remove it to have it written again"
                )
            return
        content = {
            "schema": SCHEMA,
            "recipe": experiment.name,
            "scale": config.scale,
            **environment,
            "page": experiment.page,
            "baseline": experiment.baseline(config),
            "variants": [variant.described() for variant in variants],
            "seeds": list(config.seeds),
        }
        write_json(self.run, content)


def plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as dicts, lists and plain values."""
    resolved: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    if not resolved["own"]:  # as in runs from before there were any
        del resolved["own"]
    return resolved


def training_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that one training depends on: all but which trainings the run has."""
    return {k: value for k, value in plain(config).items() if k not in ("variants", "seeds")}


def differences(previous: object, resolved: object, name: str = "") -> list[str]:
    """What differs between two nested dicts of plain values, one sentence each."""
    if isinstance(previous, dict) and isinstance(resolved, dict):
        keys = sorted({*previous, *resolved}, key=str)
        return [
            line
            for key in keys
            for line in differences(
                previous.get(key), resolved.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if previous == resolved else [f"{name} is {previous} there and {resolved} here"]


class MetricsFile:
    """Appends to metrics.jsonl; size and digest go into the checkpoint; a resume cuts back to them.

    Args:
        path: The file; its folder exists.
        size: Bytes that belong to the checkpoint the run goes on from; 0 at a fresh start.
        digest: What :meth:`digest` said of them; None where an earlier version did not ask.

    Raises:
        CheckpointError: These bytes are not there, or are others.
    """

    def __init__(self, path: Path, *, size: int = 0, digest: str | None = None) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        with saving(path):
            self._file = path.open("a+b")
            self._file.seek(0)
            kept = self._file.read(size)
            self._digest.update(kept)
            changed = digest not in (None, self._digest.hexdigest())
            if len(kept) < size or changed:
                self._file.close()
                found = "other bytes" if changed and len(kept) == size else f"{len(kept)} bytes"
                raise CheckpointError(
                    f"{path} has {found}, its checkpoint was written at {size}: lines are "
                    f"lost; delete the folder {path.parent} to train this seed again"
                )
            self._file.truncate(size)

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            with saving(self._path):
                self._file.close()
        else:
            # The error on its way out says more than a second failure to write would.
            with suppress(OSError):
                self._file.close()

    def append(self, kind: str, **fields: Any) -> None:
        """Add one line."""
        line = json.dumps(finite({"kind": kind, **fields}), allow_nan=False).encode() + b"\n"
        self._digest.update(line)
        with saving(self._path):
            self._file.write(line)

    def sync(self) -> int:
        """Bring all lines to the disk and return the size of the file."""
        with saving(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all lines."""
        return self._digest.hexdigest()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        return [json.loads(line) for line in _text_of(path).split("\n") if line]
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); need one JSON object per line"
        ) from error
