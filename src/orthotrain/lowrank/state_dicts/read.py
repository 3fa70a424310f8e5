"""Any file or folder with the weights of a model: named tensors, and where they came from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from orthotrain._doors import checked
from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.lowrank.state_dicts.entries import find_entry
from orthotrain.lowrank.state_dicts.pickles import load_pickled
from orthotrain.lowrank.storage import StoredLayout, read_saved
from orthotrain.lowrank.verified import told_of_reading

_TENSOR_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# Files that loops write beside the weights.
_BESIDE: Final = ("optimizer", "scheduler", "scaler", "training_args", "rng_state", "random_states")
# First bytes of what is often given and is something else, and what to do then.
_KNOWN: Final[dict[bytes, str]] = {
    b"version https://git-lfs": "a pointer of Git LFS; fetch the weights with git lfs pull",
    b"GGUF": "a GGUF file, whose weights are quantized; give the weights it was made from",
    b"\x89HDF": "an HDF5 file, as Keras writes; save the model in PyTorch first",
    b"\x93NUMPY": "an array of numpy, without names; save tensors by name",
    b"\x1f\x8b": "packed by gzip; unpack it first",
    b"BZh": "packed by bzip2; unpack it first",
    b"\xfd7zXZ": "packed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it first",
}


@dataclass(frozen=True)
class StoredModel:
    """The weights of a model as files hold them, with no network around them.

    Attributes:
        tensors: By name, on the CPU; names of one tied weight share it.
        source: The file or folder that was given.
        files: Every file that was read.
        format: What they are, such as ``"safetensors"``.
        entry: Where in a checkpoint they were, with dots between names; empty for all of it.
        other_entries: Entries beside it that hold tensors, too.
        without: Type of each value among them that is no tensor, by name.
        layouts: How weights were read that the file holds in factors, by name, where it says so.
        two_layers: Ranks of what ``to_factored`` made two layers of, by name, where it says so.
    """

    tensors: Mapping[str, Tensor]
    source: str = "the state dict"
    files: tuple[Path, ...] = ()
    format: str = "state dict"
    entry: str = ""
    other_entries: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)
    layouts: Mapping[str, StoredLayout] = field(default_factory=dict)
    two_layers: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.source}: {self.format}"]
        if len(self.files) > 1:
            parts.append(f"{len(self.files)} files")
        if self.entry:
            parts.append(f"entry {self.entry}")
        if self.other_entries:
            parts.append(f"not read: {', '.join(self.other_entries)}")
        return ", ".join(parts)


def stored_model(given: StoredModel | Mapping[str, Tensor]) -> StoredModel:
    """A model as it was read, or the weights in a mapping, which may be a whole checkpoint.

    Raises:
        CheckpointError: The mapping holds no tensors.
    """
    if isinstance(given, StoredModel):
        return given
    entry = find_entry(given, key=None, source="the state dict")
    return StoredModel(
        entry.tensors, entry=entry.name, other_entries=entry.others, without=entry.without
    )


@checked
def read_any(path: str | os.PathLike[str], *, key: str | None = None) -> StoredModel:
    """Named tensors of a file or folder that any program wrote; no code in it is ever run.

    Read are safetensors, both formats of ``torch.save``, checkpoints of Lightning, timm and others
    that keep the weights under a name such as ``state_dict``, and folders of Transformers, with an
    index over several files, too.

    Args:
        path: The file, the folder, or the ``*.index.json`` of several files.
        key: The entry of a checkpoint that holds the weights, such as ``"state_dict_ema"``; None
            looks for it.

    Raises:
        CheckpointError: It is missing, empty, damaged, no model, or a pickle that would run code.
        ConfigError: ``key`` names no entry with tensors, or a folder holds several models.
    """
    path = Path(path)
    with told_of_reading(path, "a file or folder with the weights of a model"):
        weights = _weights_in(path) if path.is_dir() else path
        with weights.open("rb") as file:
            start = file.read(32)
    if weights.suffix == ".json":
        return _sharded(path, weights, key)
    if not start:
        raise CheckpointError(f"{weights} is empty; take another copy")
    return _file(path, weights, start, key)


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins with these bytes is one: a length, then a JSON object."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40


def _file(given: Path, path: Path, start: bytes, key: str | None) -> StoredModel:
    if is_safetensors(start) or path.suffix == ".safetensors":
        if key is not None:
            raise ConfigError(f"key={key!r}: {path} is safetensors, which has no entries")
        saved = read_saved(path, foreign=True)
        tensors = dict(sorted(saved.with_aliases().items(), key=_in_model_order))
        return StoredModel(
            tensors, str(given), (path,), "safetensors",
            layouts=saved.layouts, two_layers=saved.two_layers,
        )  # fmt: skip
    for first, words in _KNOWN.items():
        if start.startswith(first):
            raise CheckpointError(f"{path} is {words}")
    entry = find_entry(load_pickled(path), key=key, source=str(path))
    kind = "torch zip" if start.startswith(b"PK") else "torch legacy"
    return StoredModel(
        entry.tensors, str(given), (path,), kind, entry.name, entry.others, entry.without
    )


def _in_model_order(named: tuple[str, Tensor]) -> list[str | int]:
    """Layer 2 before layer 10: safetensors keep names in the order of letters."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", named[0])]


def _weights_in(folder: Path) -> Path:
    """The file in a folder that holds the weights, or the index over several."""
    inside = sorted(path for path in folder.iterdir() if path.is_file())
    kept = [path for path in inside if not path.name.startswith((".", *_BESIDE))]
    choices: Iterable[Callable[[Path], bool]] = (
        lambda path: path.name == "orthotrain.safetensors",
        lambda path: path.name.endswith(".safetensors.index.json"),
        lambda path: path.suffix == ".safetensors",
        lambda path: path.name.endswith(".bin.index.json"),
        lambda path: path.suffix in _TENSOR_SUFFIXES,
    )
    for holds in choices:
        found = [path for path in kept if holds(path)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"{folder} holds several models: {', '.join(path.name for path in found[:6])}; "
                "give one of these files"
            )
    raise CheckpointError(
        f"{folder} is a folder without weights: no {', '.join(_TENSOR_SUFFIXES)} and no index of "
        "such files; give the file, or the folder that holds it"
    )


def _sharded(given: Path, index: Path, key: str | None) -> StoredModel:
    """The tensors of all files that an index names."""
    names = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    shards = {name: index.parent / name for name in sorted(set(names.values()))}
    for shard in shards.values():
        if not shard.is_file():
            raise CheckpointError(
                f"{index} needs {shard.name}, which is not beside it; fetch all of its "
                f"{len(shards)} files"
            )
        tensors |= read_any(shard, key=key).tensors
    if missing := sorted(names.keys() - tensors.keys()):
        raise CheckpointError(
            f"{index} names {', '.join(missing[:3])}, which its files do not hold; fetch index and "
            "files of one version"
        )
    return StoredModel(tensors, str(given), (index, *shards.values()), "sharded folder")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{index} is no index of files: {error}; take another copy"
        ) from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(
            f"{index} is no index of files: it has no weight_map; give the file or folder of the "
            "weights"
        )
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(
                f"{index} names {name!r}, which is no file beside it; take another copy"
            )
    return names
