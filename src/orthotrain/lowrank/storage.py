"""Save and load a model with its ranks: one safetensors file, read without pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from orthotrain.errors import CheckpointError
from orthotrain.files import write_atomically
from orthotrain.lowrank.follow import is_factored_name, restore_structure
from orthotrain.methods.select import clean_name, unwrap

_FORMAT = "orthotrain.model.1"


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's parameters and buffers, and the rank of each low-rank weight.

    The file takes its place once it is complete, so a full disk or a killed process leaves an
    earlier file as it was.

    Args:
        model: Any model; wrappers (DDP, ``torch.compile``) are looked through.
        path: File to write, usually ``*.safetensors``. Its folder must exist.

    Raises:
        CheckpointError: The file cannot be written.
    """
    path = Path(path)
    tensors, aliases = _distinct(unwrap(model).state_dict())
    ranks = {name: t.shape[-2] for name, t in tensors.items() if is_factored_name(name)}
    metadata = {
        "format": _FORMAT,
        "ranks": json.dumps(ranks, sort_keys=True),
        "aliases": json.dumps(aliases, sort_keys=True),
    }
    content = to_bytes(
        {name: t.cpu().contiguous().clone() for name, t in tensors.items()}, metadata
    )
    try:
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(
            f"save needs to write {len(content):,} bytes to {path}, got: {error}; make room, make "
            "the folder or choose another one. A file that was there before is unchanged"
        ) from error


def load(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Shape a model like a saved one and take over its values, in place.

    Args:
        model: A fresh model of the same architecture, dense or low-rank.
        path: A file that ``save`` wrote.

    Returns:
        The same model.

    Raises:
        CheckpointError: The file is missing, damaged or not from ``save``, or it belongs to
            another architecture; in the last case the model may have changed in part, so build
            it anew.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"load needs a file written by orthotrain.save ({_FORMAT}), got {path} with format "
            f"{metadata.get('format')!r}; load other safetensors files with safetensors itself"
        )
    for alias, name in json.loads(metadata["aliases"]).items():
        tensors[alias] = tensors[name]
    inner = unwrap(model)
    try:
        restore_structure(inner, tensors)
        inner.load_state_dict(tensors)
    except (CheckpointError, RuntimeError) as error:
        raise CheckpointError(
            f"load needs the model that {path} was saved from, got another one: {error}; build "
            "it with the settings it was trained with"
        ) from error
    return model


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"load needs an existing file, got {path}; check the path") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"load needs a complete safetensors file, got {path}: {error}; the file is damaged "
            "or of another kind, use an earlier checkpoint"
        ) from error


def _distinct(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without repetitions, and the names of those that are the same as another."""
    first: dict[tuple[object, ...], str] = {}
    tensors, aliases = {}, {}
    for key, tensor in state.items():
        name = clean_name(key)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"save needs tensors only, got {type(tensor).__name__} for {name} (extra state); "
                "save it beside the model with torch.save"
            )
        view = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        known = first.setdefault(view, name)
        if known == name or tensor.numel() == 0:
            tensors[name] = tensor
        else:
            aliases[name] = known
    return tensors, aliases
