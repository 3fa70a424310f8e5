"""What a command reads: the checkpoint of a run, or any other file of weights."""

from __future__ import annotations

from pathlib import Path

from orthotrain.errors import ConfigError


def is_run(path: Path, *, key: str | None) -> bool:
    """Whether a file is the checkpoint of a run, whose network can be built again.

    Raises:
        ConfigError: It is one, and ``--key`` names an entry.
    """
    from orthotrain.lab.run.checkpoint import is_run_checkpoint

    found = is_run_checkpoint(path)
    if found and key is not None:
        raise ConfigError("--key: the checkpoint of a run says itself which entry is the model")
    return found
