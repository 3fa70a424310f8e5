"""The weights of a state dict that may be cut, and everything else with its reason."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from orthotrain._checks import is_dense
from orthotrain.errors import ConfigError
from orthotrain.lowrank.no_form import TIED_HEAD
from orthotrain.lowrank.settings import require_aspect
from orthotrain.lowrank.state_dicts.read import StoredModel
from orthotrain.lowrank.state_dicts.weights import LeftOut, Reader, StoredWeight, dtype_name


@dataclass(frozen=True)
class Chosen:
    """What a state dict holds, sorted.

    Attributes:
        weights: Those that may be cut, in the order of the state dict; a tied one comes once.
        left: Everything else.
        others: Weights among the rest that settings could add.
    """

    weights: tuple[StoredWeight, ...]
    left: tuple[LeftOut, ...]
    others: tuple[StoredWeight, ...]

    @property
    def other_numbers(self) -> int:
        """Numbers outside the weights."""
        return sum(each.numbers for each in self.left)

    @property
    def other_bytes(self) -> int:
        """Bytes outside the weights."""
        return sum(each.bytes for each in self.left)


def without_broken(chosen: Chosen) -> Chosen:
    """The same, where weights that hold NaN or infinity have no spectrum and are left."""
    broken = {w.key: w for w in (*chosen.weights, *chosen.others) if not w.finite}
    left = [
        LeftOut(
            w.key, tuple(w.held[0].shape), dtype_name(w.held[0]), w.stored, w.bytes_at(None),
            "holds NaN or infinity",
        )
        for w in chosen.weights
        if w.key in broken
    ]  # fmt: skip
    return Chosen(
        tuple(w for w in chosen.weights if w.key not in broken),
        (*left, *chosen.left),
        tuple(w for w in chosen.others if w.key not in broken),
    )


def choose(
    stored: StoredModel,
    *,
    also: Sequence[str],
    only: Sequence[str],
    skip: Sequence[str],
    max_aspect: float,
    owners: Mapping[str, nn.Module] | None = None,
) -> Chosen:
    """Sort the tensors of a model into weights that may be cut and the rest.

    Args:
        stored: The model.
        also: Kinds of weights that are cut on request.
        only: ``fnmatch`` patterns on names of layers to cut; all others stay.
        skip: Patterns on names of layers that stay.
        max_aspect: A weight whose larger side is this many times the smaller, or more, stays.
        owners: Modules by name, where the network is known.

    Raises:
        ConfigError: A pattern that matches nothing, or ``max_aspect`` of 1 or less.
    """
    require_aspect("a cut of a file", max_aspect)
    reader = Reader(stored.tensors, stored.layouts, owners or {}, also, max_aspect)
    looks = {key: reader.look(key) for key in stored.tensors}
    _apply_patterns(looks, only=only, skip=skip)
    weights: list[StoredWeight] = []
    others: list[StoredWeight] = []
    left: list[LeftOut] = []
    for keys in _tied(stored.tensors):
        weight, reasons = _together([looks[key] for key in keys], keys)
        if weight is not None:
            (others if any(reasons) else weights).append(weight)
        if not any(reasons):
            continue
        for i, (key, reason) in enumerate(zip(keys, reasons, strict=True)):
            tensor = stored.tensors[key]
            numbers = 0 if i else tensor.numel()
            size = numbers * tensor.element_size()
            left.append(
                LeftOut(key, tuple(tensor.shape), dtype_name(tensor), numbers, size, reason)
            )
    left += [
        LeftOut(key, (), kind, 0, 0, f"no tensor ({kind}): not read, not written")
        for key, kind in stored.without.items()
    ]
    bases = {key for w in weights if w.form == "core" for key in _bases(w)}
    left = [each for each in left if each.name not in bases]
    return Chosen(tuple(weights), tuple(left), tuple(others))


def _bases(weight: StoredWeight) -> list[str]:
    """Names of the bases around a core, which are counted with it."""
    stems = [key.removesuffix("core") for key in (weight.key, *weight.aliases)]
    return [stem + base for stem in stems for base in ("u", "vh")]


def _apply_patterns(
    looks: dict[str, StoredWeight | str], *, only: Sequence[str], skip: Sequence[str]
) -> None:
    """Write down, in place, which weights patterns leave out."""
    for key, look in looks.items():
        if isinstance(look, StoredWeight) and _matches(key, skip):
            looks[key] = replace(look, stays="skipped by pattern")
        elif isinstance(look, StoredWeight) and only and not _matches(key, only):
            looks[key] = replace(look, stays="not named by only")
    for pattern in (*only, *skip):
        if not any(_matches(key, [pattern]) for key in looks):
            layers = dict.fromkeys(name for key in looks for name in _names(key))
            near = difflib.get_close_matches(pattern, layers, n=3) or list(layers)[:3]
            raise ConfigError(
                f"{pattern!r} matches no layer of this file; its names are like {', '.join(near)}"
            )


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in _names(key) for pattern in patterns)


def _names(key: str) -> tuple[str, ...]:
    """What a pattern may name: the layer, or the tensor itself."""
    stem = key.rpartition(".")[0]
    return (stem, key) if stem else (key,)


def _together(
    looks: Sequence[StoredWeight | str], keys: Sequence[str]
) -> tuple[StoredWeight | None, list[str]]:
    """The one weight that all names are of, if they are, and why each of them stays, if they do."""
    reasons = [look if isinstance(look, str) else look.stays for look in looks]
    if any(reasons):
        held, why = next(each for each in zip(keys, reasons, strict=True) if each[1])
        tied = f"tied to {held}, which stays as it is ({why})"
        reasons = [reason or tied for reason in reasons]
    first, *rest = looks
    kinds = {look.kind for look in looks if isinstance(look, StoredWeight)}
    if "embedding" in kinds and len(kinds) > 1:
        return None, [f"tied, {', '.join(keys)}: {TIED_HEAD}"] * len(keys)
    if not isinstance(first, StoredWeight):
        return None, reasons
    for other in rest:
        if isinstance(other, str) or (other.layout, other.form) != (first.layout, first.form):
            several = f"tied weight that is read in different ways: {', '.join(keys)}"
            return None, [reason or several for reason in reasons]
    return replace(first, aliases=tuple(keys[1:])), reasons


def _tied(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names by tensor: the same memory, or matrices with the same numbers that are not all zero."""
    by_memory: dict[tuple[object, ...], list[str]] = {}
    for key, tensor in tensors.items():
        by_memory.setdefault(_memory(key, tensor), []).append(key)
    groups: list[list[str]] = []
    alike: dict[tuple[object, ...], list[list[str]]] = {}
    for keys in by_memory.values():
        tensor = tensors[keys[0]]
        if tensor.ndim < 2 or not tensor.numel() or not is_dense(tensor) or tensor.is_meta:
            groups.append(keys)
            continue
        others = alike.setdefault((tensor.shape, tensor.dtype, *_sample(tensor)), [])
        same = next((g for g in others if torch.equal(tensors[g[0]], tensor)), None)
        if same is not None and bool(tensor.any()):
            same.extend(keys)
        else:
            others.append(keys)
            groups.append(keys)
    return groups


def _memory(key: str, tensor: Tensor) -> tuple[object, ...]:
    if tensor.numel() == 0 or tensor.layout is not torch.strided or tensor.is_meta:
        return (key,)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _sample(tensor: Tensor) -> list[float]:
    """A few numbers, so that few pairs are compared as a whole."""
    return [float(number) for number in tensor[0].reshape(-1)[:8]]
