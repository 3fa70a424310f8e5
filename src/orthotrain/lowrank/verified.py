"""A safetensors file that carries a hash of its content, so that damage is noticed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from orthotrain.errors import CheckpointError, OrthotrainError
from orthotrain.files import remedy

_logger = logging.getLogger("orthotrain")

#: Written by ``orthotrain.save``. The first version had no hash.
FORMAT: Final = "orthotrain.model.2"
UNHASHED_FORMAT: Final = "orthotrain.model.1"
_HASH: Final = "orthotrain.sha256"
# Metadata come first in a file; bytes of it that are searched for our name.
_START: Final = 65536


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether this package wrote the file with this metadata."""
    return metadata.get("format", "").startswith("orthotrain.")


def content_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256, in hexadecimal, of metadata and of every tensor's name, dtype, shape and bytes.

    Args:
        tensors: By name, on any device; the order does not matter.
        metadata: All of it but the hash.
    """
    found = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(bytes_of(tensor))
    return found.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values: a NaN has many forms, and numpy knows no bfloat16."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def hashed_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a file with these tensors and metadata, and their hash."""
    plain = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    described = {"format": FORMAT, **metadata}
    return bytes(to_bytes(plain, {**described, _HASH: content_hash(plain, described)}))


def read_tensors(path: Path, *, foreign: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, after its hash was checked.

    A file without a hash, of another program or an earlier version, is read with a line in the
    log; ``foreign`` leaves the line out for those of other programs.

    Raises:
        CheckpointError: The file is missing, is not the one that was written, or has a format
            that this version does not know.
    """
    tensors, metadata = _read(path)
    written = metadata.pop(_HASH, None)
    name = metadata.get("format", "")
    if written is not None:
        if written != content_hash(tensors, metadata):
            raise _damaged(path, "its content does not match the hash in its metadata", ours=True)
    elif name == FORMAT or (not is_ours(metadata) and "orthotrain" in json.dumps(metadata)):
        # The names of the entries may be what was damaged.
        reason = f"it was written by orthotrain, and its metadata has no {_HASH}"
        raise _damaged(path, reason, ours=True)
    if is_ours(metadata) and name not in (FORMAT, UNHASHED_FORMAT):
        raise CheckpointError(
            f"{path} has the format {name!r}, this version reads {FORMAT} and {UNHASHED_FORMAT}; "
            "use the version of orthotrain that wrote it"
        )
    if written is None and (is_ours(metadata) or not foreign):
        _logger.warning(
            "%s has no hash of its content, so damage to it cannot be noticed; files of "
            "orthotrain.save have one",
            path,
        )
    return tensors, metadata


@contextmanager
def told_of_reading(path: Path, need: str) -> Iterator[None]:
    """Turn what the system says of a file that cannot be opened into CheckpointError."""
    try:
        yield
    except OrthotrainError:  # says already what is wrong
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; need {need}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {remedy(error)}") from error
    except ValueError as error:  # a null character
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}; correct it") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    # The error of safetensors for what cannot be opened does not name the cause.
    with told_of_reading(path, "a safetensors file, check the path"), path.open("rb"):
        pass
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(path, str(error), ours=_names_us(path)) from error


def _names_us(path: Path) -> bool:
    """Whether the metadata at the start of a file that cannot be read says who wrote it."""
    with path.open("rb") as file:
        return b"orthotrain." in file.read(_START)


def _damaged(path: Path, reason: str, *, ours: bool) -> CheckpointError:
    again = "use an earlier copy, or write it again with orthotrain.save"
    return CheckpointError(
        f"{path} is damaged or no safetensors file ({reason}); "
        + (again if ours else "take another copy, such as by fetching it again")
    )
