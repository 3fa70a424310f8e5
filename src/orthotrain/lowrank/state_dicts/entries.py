"""Where in a checkpoint the weights are: beside optimizer, settings and averaged copies."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from orthotrain.errors import CheckpointError, ConfigError

# Names under which programs keep the weights, the first one that is there is taken.
_WEIGHTS: Final = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params",
    "model_state", "state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema",
)  # fmt: skip
# Names under which they keep what trains the weights.
_OTHERS: Final = ("optim", "sched", "scaler", "callback", "loop", "rng", "hyper")


@dataclass(frozen=True)
class Entry:
    """A state dict within a checkpoint.

    Attributes:
        name: Where it is, with dots between names; empty for the checkpoint itself.
        tensors: Its tensors by name; nested ones with dots between names.
        without: Type of each value that is no tensor and no plain number or text, by name.
        others: The other entries that hold tensors and might be meant.
    """

    name: str
    tensors: dict[str, Tensor]
    without: dict[str, str]
    others: tuple[str, ...] = ()


def find_entry(saved: object, *, key: str | None, source: str) -> Entry:
    """The weights in what a file holds.

    Args:
        saved: What the file holds.
        key: The entry to take, with dots between names; None looks for it.
        source: The file, for messages.

    Raises:
        CheckpointError: There are no named tensors.
        ConfigError: ``key`` names no entry with tensors.
    """
    if not isinstance(saved, Mapping):
        raise CheckpointError(
            f"{source} holds a {type(saved).__name__}, not tensors by name; save a state dict: "
            "torch.save(model.state_dict(), PATH)"
        )
    if key is not None:
        return _named(saved, key, source)
    name, others = _search(saved)
    found = _entry(name, _at(saved, name), others)
    if not found.tensors:
        raise CheckpointError(
            f"{source} holds no weights: no tensor under {_listed(saved) or 'any name'}; give the "
            "file of the model, not of its optimizer or settings"
        )
    return found


def _named(saved: Mapping[Any, Any], key: str, source: str) -> Entry:
    known = [name for name in _mappings(saved, "") if _has_tensor(_at(saved, name))]
    if key not in known:
        near = difflib.get_close_matches(key, known) or known[:8]
        raise ConfigError(
            f"key={key!r} is no entry with tensors in {source}; "
            + (f"there is {', '.join(near)}" if near else "its tensors have no entry: leave it out")
        )
    return _entry(key, _at(saved, key), ())


def _search(saved: Mapping[Any, Any]) -> tuple[str, tuple[str, ...]]:
    """Name of the entry that is taken, and of others that might be meant."""
    name = ""
    others: tuple[str, ...] = ()
    while True:
        here = _at(saved, name)
        held = {
            str(k): value
            for k, value in here.items()
            if isinstance(value, Mapping) and not _is_other(str(k), value) and _has_tensor(value)
        }
        known = [each for each in _WEIGHTS if each in held]
        bare = any(isinstance(value, Tensor) for value in here.values())
        if not known and (bare or len(held) != 1):
            return name, others
        taken = known[0] if known else next(iter(held))
        prefix = f"{name}." if name else ""
        others += tuple(prefix + each for each in held if each != taken)
        name = prefix + taken


def _entry(name: str, held: Mapping[Any, Any], others: tuple[str, ...]) -> Entry:
    tensors: dict[str, Tensor] = {}
    without: dict[str, str] = {}
    for inner, value in _flat(held, ""):
        if isinstance(value, Tensor):
            tensors[inner] = value.detach()
        elif not (value is None or isinstance(value, bool | int | float | str)):
            without[inner] = type(value).__name__
    return Entry(name, tensors, without, others)


def _flat(held: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in held.items():
        name = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            yield name, value
        elif not _is_other(str(key), value) and _has_tensor(value):
            yield from _flat(value, f"{name}.")


def _at(saved: Mapping[Any, Any], name: str) -> Mapping[Any, Any]:
    for part in name.split(".") if name else ():
        saved = next(value for key, value in saved.items() if str(key) == part)
    return saved


def _mappings(saved: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    for key, value in saved.items():
        if isinstance(value, Mapping):
            yield f"{prefix}{key}"
            if not any(isinstance(each, Tensor) for each in value.values()):
                yield from _mappings(value, f"{prefix}{key}.")


def _is_other(name: str, held: Mapping[Any, Any]) -> bool:
    """Whether an entry is what trains the weights, by its name or its form."""
    return "param_groups" in held or any(part in name.lower() for part in _OTHERS)


def _has_tensor(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    return isinstance(value, Tensor)


def _listed(saved: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, list(saved)[:8]))
