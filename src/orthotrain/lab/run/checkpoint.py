"""Checkpoints: written atomically, verified as a whole, loaded with ``weights_only``."""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import torch

from orthotrain.errors import CheckpointError
from orthotrain.files import remedy, write_atomically
from orthotrain.lab.run.record import saving

SCHEMA: Final = 2
FORMAT: Final = "orthotrain-checkpoint"
# The version that wrote no digest.
_UNSEALED_SCHEMA: Final = 1
# The digest is the comment at the end of the zip archive, so torch.load reads the file as it is.
_SEAL: Final = b"orthotrain-sha256:"
_SEAL_BYTES: Final = len(_SEAL) + 2 * hashlib.sha256().digest_size
_END_RECORD: Final = b"PK\x05\x06"
_END_BYTES: Final = 22

_logger = logging.getLogger("orthotrain")


def save_checkpoint(path: Path, state: dict[str, Any], *, keep: Path | None = None) -> None:
    """Replace the checkpoint at ``path``; on failure the previous one stays.

    Args:
        path: Target file.
        state: Tensors and plain values only.
        keep: Where the checkpoint that is replaced goes; None for nowhere.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "schema": SCHEMA, **state}, buffer)
    content = _sealed(buffer)
    with saving(path):
        write_atomically(path, content, keep=keep)


def _sealed(archive: io.BytesIO) -> bytes:
    """A zip archive and, as its comment, the SHA-256 of everything before the comment."""
    with archive.getbuffer() as content:
        assert bytes(content[-_END_BYTES:][:4]) == _END_RECORD, "torch.save wrote no zip archive"
        content[-2:] = _SEAL_BYTES.to_bytes(2, "little")
        digest = hashlib.sha256(content).hexdigest()
    archive.seek(0, io.SEEK_END)
    archive.write(_SEAL + digest.encode())
    return archive.getvalue()


def is_run_checkpoint(path: Path) -> bool:
    """Whether a file is one that ``save_checkpoint`` wrote, by its digest or its own name in it."""
    try:
        with path.open("rb") as file:
            file.seek(-min(_SEAL_BYTES, path.stat().st_size), io.SEEK_END)
            if file.read().startswith(_SEAL):
                return True
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(FORMAT.encode() in archive.read(name) for name in pickles)
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, RuntimeError):
        return False  # whoever reads it says what is wrong


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, after all of its bytes were verified.

    A checkpoint of an earlier version has no digest. It is read with a line in the log.

    Raises:
        CheckpointError: The file is missing, truncated, damaged, or not one of ours.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"load_checkpoint: {path} does not exist; need a checkpoint.pt of a run folder"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"load_checkpoint: {path} cannot be read ({error}); {remedy(error)}"
        ) from error
    try:
        sealed = _verify(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises whatever its bytes happen to mean
        raise _damaged(path, error) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"load_checkpoint: {path} was not written by orthotrain train; need a checkpoint.pt "
            "of a run folder"
        )
    schema = state.get("schema")
    if schema not in (SCHEMA, _UNSEALED_SCHEMA):
        raise CheckpointError(
            f"load_checkpoint: {path} has schema {schema}, this version reads "
            f"{SCHEMA} and {_UNSEALED_SCHEMA}; use the version of orthotrain that wrote it"
        )
    if schema == SCHEMA and not sealed:
        raise _damaged(path, ValueError("the digest at its end is missing"))
    if not sealed:
        _logger.warning(
            "%s is of an earlier version, without a digest: not all damage to it can be noticed",
            path,
        )
    return state


def _verify(content: bytes) -> bool:
    """Whether there is a digest; raises where it, or the checksums of the archive, do not match."""
    if content[-_SEAL_BYTES:].startswith(_SEAL):
        digest = content[-_SEAL_BYTES + len(_SEAL) :]
        found = hashlib.sha256(memoryview(content)[:-_SEAL_BYTES]).hexdigest()
        if digest != found.encode():
            raise ValueError("its content does not match the digest at its end")
        return True
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} does not match")
    return False


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(
        f"load_checkpoint: {path} is damaged or no checkpoint ({reason}); need a checkpoint.pt "
        "of a run folder. Restore a copy, or move it away and run the same command again to "
        "train this seed from its start"
    )
