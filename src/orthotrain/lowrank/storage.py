"""Save and load a model with its ranks: one safetensors file, hashed, read without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from orthotrain._checks import is_dense
from orthotrain._doors import checked
from orthotrain._sharded import GATHER_FIRST, SHARD_AFTER, require_whole
from orthotrain.errors import CheckpointError
from orthotrain.files import remedy, write_atomically
from orthotrain.layers._factor_names import pair_name
from orthotrain.layers._factors import LowRankModule, holds_pair
from orthotrain.linalg.matrices import WeightLayout
from orthotrain.lowrank.following import restore_structure
from orthotrain.lowrank.names import as_names_of, clean_keys, is_factored_name
from orthotrain.lowrank.pretrained import guard_pairs
from orthotrain.lowrank.two_layers import is_pair, put_pairs_
from orthotrain.lowrank.verified import hashed_bytes, is_ours, read_tensors
from orthotrain.methods.select import clean_name, named_modules_clean, unwrap

_BUILD: Final = "; build it with the settings it was trained with"


class StoredLayout(NamedTuple):
    """How a weight that is held as a pair is read as matrices.

    ``m`` outputs by ``n`` inputs each; ``inputs_first`` of embeddings and transposed convolutions.
    """

    m: int
    n: int
    inputs_first: bool

    @classmethod
    def of(cls, layout: WeightLayout) -> StoredLayout:
        """What a file says of a layout."""
        return cls(layout.m, layout.n, layout.inputs_first)


@dataclass(frozen=True)
class SavedFile:
    """What a safetensors file holds.

    Attributes:
        tensors: By name, each once.
        aliases: Names that stand for another tensor of the file.
        layouts: How weights are read that are held as pairs, by name of the pair.
        two_layers: Ranks of what was two layers in the place of one, by name.
    """

    tensors: dict[str, Tensor]
    aliases: Mapping[str, str]
    layouts: Mapping[str, StoredLayout]
    two_layers: Mapping[str, int] = field(default_factory=dict)

    def with_aliases(self) -> dict[str, Tensor]:
        """Every name that the model has."""
        return self.tensors | {alias: self.tensors[name] for alias, name in self.aliases.items()}


@checked
def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's parameters and buffers, the rank of each low-rank weight, and a hash.

    The file takes its place once it is complete, so a full disk or a killed process leaves an
    earlier file as it was.

    Args:
        model: Any model; wrappers (DDP, ``torch.compile``) are looked through.
        path: File to write, usually ``*.safetensors``. Its folder must exist.

    Raises:
        ConfigError: The model is sharded over processes.
        CheckpointError: The file cannot be written.
    """
    require_whole("save", model, f"{GATHER_FIRST}, or save it with torch.distributed.checkpoint")
    path = Path(path)
    inner = unwrap(model)
    state = inner.state_dict()
    tensors, aliases = distinct({name: state[key] for name, key in clean_keys(inner).items()})
    layouts = {key: StoredLayout.of(layout) for key, layout in _layouts(inner) if key in tensors}
    pairs = {name: vars(module)["rank"] for name, module in _modules(inner) if is_pair(module)}
    write_saved(path, tensors, factored_metadata(tensors, aliases, layouts, pairs))


def factored_metadata(
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    layouts: Mapping[str, StoredLayout] | None = None,
    two_layers: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """What ``load`` reads beside the tensors: ranks, and names that stand for another tensor."""
    entries: dict[str, Mapping[str, object]] = {"ranks": _ranks(tensors), "aliases": aliases}
    if layouts:
        entries["layouts"] = layouts
    if two_layers:
        entries["two_layers"] = two_layers
    return {name: json.dumps(entry, sort_keys=True) for name, entry in entries.items()}


def write_saved(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, metadata and their hash, at once.

    Raises:
        CheckpointError: The file cannot be written.
    """
    content = hashed_bytes(tensors, metadata)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(
            f"save needs to write {len(content):,} bytes to {path}, got: {error}; "
            f"{remedy(error)}. A file that was there before is unchanged"
        ) from error


@checked
def load(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Shape a model like a saved one and take over its values, in place.

    The content is checked against the hash that ``save`` wrote. A file without one, from an
    earlier version or another program, is loaded with a line in the log. What wrappers put into
    names does not matter, neither around the model nor around parts of it.

    Args:
        model: A fresh model of the same architecture, dense or low-rank. What it has on the meta
            device gets memory on the CPU. Of a model after ``to_factored``, its layers become two
            each as the file says.
        path: A file that ``save`` wrote, or safetensors with the model's own names.

    Returns:
        The same model.

    Raises:
        ConfigError: The model is sharded over processes.
        CheckpointError: The file is missing, damaged or of an unknown format, or it belongs to
            another architecture, or has no value for something that is on the meta device; in
            the last two cases the model may have changed in part, so build it anew.
    """
    require_whole("load", model, SHARD_AFTER)
    path = Path(path)
    inner, saved = unwrap(model), read_saved(path)
    _put_two_layers_(inner, saved.two_layers, path)
    held = {n: (tensor, saved.layouts.get(n)) for n, tensor in saved.with_aliases().items()}
    named = as_names_of(inner, held)
    tensors = {name: tensor for name, (tensor, _) in named.items()}
    try:
        restore_structure(inner, tensors)
        _require_layouts(inner, {name: layout for name, (_, layout) in named.items() if layout})
        _give_memory(inner)
        keys = clean_keys(inner)
        inner.load_state_dict({keys.get(name, name): value for name, value in tensors.items()})
    except (CheckpointError, RuntimeError) as error:
        raise CheckpointError(
            f"load needs the model that {path} was saved from, got another one: {error}"
            + _BUILD * isinstance(error, RuntimeError)
        ) from error
    if without := [name for name, value in inner.named_buffers() if value.is_meta]:
        raise CheckpointError(
            f"load has no value for {', '.join(without)}: on the meta device, and no part of a "
            "state dict; build the model on a device"
        )
    return model


def _put_two_layers_(model: nn.Module, ranks: Mapping[str, int], path: Path) -> None:
    """Let a model have two layers where the saved one has them.

    Raises:
        CheckpointError: It has no such layer.
    """
    if not ranks:
        return
    with_wrappers = {
        clean_name(name): name for name, _ in model.named_modules(remove_duplicate=False)
    }
    there = {name for name, module in _modules(model) if is_pair(module)}
    wanted = {with_wrappers.get(n, n): rank for n, rank in ranks.items() if n not in there}
    try:
        put_pairs_(model, wanted)
    except CheckpointError as error:
        raise CheckpointError(
            f"load needs the model that {path} was saved from, got another one: {error}"
        ) from error
    guard_pairs(model)


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return named_modules_clean(model, remove_duplicate=False)


def _require_layouts(model: nn.Module, layouts: Mapping[str, StoredLayout]) -> None:
    """Refuse factors that were made of a weight read in another way than its layer reads it.

    Raises:
        CheckpointError: The shapes of factors may agree where their halves do not.
    """
    for key, layout in _layouts(model):
        read = layouts.get(key)
        if read not in (None, StoredLayout.of(layout)):
            raise CheckpointError(
                f"{key} was made of a weight read as {read}, and the layer of this model reads it "
                "as another kind of layer; compress the file again and leave it out (--skip, skip=)"
            )


def _layouts(model: nn.Module) -> Iterator[tuple[str, WeightLayout]]:
    """Clean name and layout of each pair of a model."""
    for name, module in _modules(model):
        if isinstance(module, LowRankModule):
            for weight in module.weights_of(module):
                if holds_pair(module, weight):
                    yield f"{name}.{pair_name(weight)}".lstrip("."), module.layout(module, weight)


def _give_memory(model: nn.Module) -> None:
    """Replace what a state dict fills and is on the meta device; what was shared stays so."""
    memory: dict[int, Tensor] = {}
    for module in model.modules():
        if is_pair(module):  # its NaN is in no file
            weight: Any = module._buffers["weight"]
            module._buffers["weight"] = torch.full_like(
                weight, torch.nan, device="cpu" if weight.is_meta else weight.device
            )
        kept_out = module._non_persistent_buffers_set
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in tables:
            for name, tensor in held.items():
                if tensor is None or not tensor.is_meta or name in kept_out:
                    continue
                if id(tensor) not in memory:
                    empty = torch.empty_like(tensor, device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        empty = nn.Parameter(empty, tensor.requires_grad)
                    memory[id(tensor)] = empty
                held[name] = memory[id(tensor)]


def read_saved(path: Path, *, foreign: bool = False) -> SavedFile:
    """What a safetensors file holds, after its hash was checked.

    Args:
        path: The file.
        foreign: Whether files of other programs are expected; else a line in the log says that
            damage to them cannot be noticed.

    Raises:
        CheckpointError: The file is missing or damaged, or its metadata is malformed.
    """
    tensors, metadata = read_tensors(path, foreign=foreign)
    if not is_ours(metadata):
        return SavedFile(tensors, {}, {})
    ranks, aliases = (_entry(metadata, name, path) for name in ("ranks", "aliases"))
    if ranks != _ranks(tensors):
        raise _malformed(path, "ranks", "they are not those of the tensors in the file")
    for alias, name in aliases.items():
        if not isinstance(name, str) or name not in tensors or alias in tensors:
            raise _malformed(path, "aliases", f"{alias!r} cannot stand for {name!r}")
    layouts = _entry(metadata, "layouts", path) if "layouts" in metadata else {}
    for name, layout in layouts.items():
        kinds = [type(value) for value in layout] if isinstance(layout, list) else []
        if name not in tensors or kinds != [int, int, bool]:
            raise _malformed(path, "layouts", f"{layout!r} cannot be that of {name!r}")
    pairs = _entry(metadata, "two_layers", path) if "two_layers" in metadata else {}
    for name, rank in pairs.items():
        if type(rank) is not int:
            raise _malformed(path, "two_layers", f"{rank!r} cannot be the rank of {name!r}")
    kept = {n: StoredLayout(*each) for n, each in layouts.items()}
    return SavedFile(tensors, aliases, kept, pairs)


def _ranks(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        name: tensor.shape[-2]
        for name, tensor in tensors.items()
        if is_factored_name(name) and tensor.ndim >= 2
    }


def _entry(metadata: Mapping[str, str], name: str, path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(metadata[name])
    except KeyError as error:
        raise _malformed(path, name, "it is missing") from error
    except (ValueError, RecursionError) as error:
        raise _malformed(path, name, f"it is no JSON ({error})") from error
    if not isinstance(entry, dict):
        raise _malformed(path, name, f"it is a {type(entry).__name__}, not an object")
    return entry


def _malformed(path: Path, name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} has malformed metadata, {name!r}: {reason}; take another copy, or write it "
        "again with orthotrain.save"
    )


def distinct(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without repetitions, and the names of those that are the same as another."""
    first: dict[tuple[object, ...], str] = {}
    tensors, aliases = {}, {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"save needs tensors only, got {type(tensor).__name__} for {name} (extra state); "
                "save it beside the model with torch.save"
            )
        held = is_dense(tensor, None) and not (tensor.is_meta or tensor.is_quantized)
        if not held or tensor.dtype is torch.complex128:  # as safetensors has it
            raise CheckpointError(
                f"save needs dense tensors with values, got {name} with layout {tensor.layout}, "
                f"dtype {tensor.dtype} on {tensor.device}; give it values with to_empty or "
                "to_dense(), or save it beside the model with torch.save"
            )
        view = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        known = first.setdefault(view, name)
        if known == name or tensor.numel() == 0:
            tensors[name] = tensor
        else:
            aliases[name] = known
    return tensors, aliases
