"""Checkpoints: written atomically, loaded with ``weights_only``, never half of one."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from orthotrain.errors import CheckpointError
from orthotrain.files import write_atomically
from orthotrain.lab.run.record import saving

SCHEMA = 1
FORMAT = "orthotrain-checkpoint"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at ``path``; on failure the previous one stays.

    Args:
        path: Target file.
        state: Tensors and plain values only.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "schema": SCHEMA, **state}, buffer)
    with saving(path):
        write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; every byte is checked against the archive's checksums.

    Raises:
        CheckpointError: The file is missing, truncated, damaged, or not one of ours.
    """
    if not path.is_file():
        raise CheckpointError(
            f"load_checkpoint: {path} does not exist; need a checkpoint.pt of a run folder"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"load_checkpoint: {path} is damaged or no checkpoint ({reason}); need a checkpoint.pt "
            "of a run folder. Restore a copy, or move it away and run the same command again to "
            "train this seed from its start"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"load_checkpoint: {path} was not written by orthotrain train; need a checkpoint.pt "
            "of a run folder"
        )
    if state.get("schema") != SCHEMA:
        raise CheckpointError(
            f"load_checkpoint: {path} has schema {state.get('schema')}, this version reads "
            f"{SCHEMA}; use the version of orthotrain that wrote it"
        )
    return state
