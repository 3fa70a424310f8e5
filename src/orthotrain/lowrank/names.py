"""Names of a state dict: without what wrappers put in, and those of a file as those of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from torch import nn

from orthotrain.layers._factor_names import factor_names, pair_name
from orthotrain.layers._factors import low_rank_class_of
from orthotrain.methods.select import WRAPPER_NAMES, inner_name, named_modules_clean

_Value = TypeVar("_Value")


def clean_keys(model: nn.Module) -> dict[str, str]:
    """The names of ``model.state_dict()`` by what they are without the model's wrappers.

    A wrapper is known by its class, at any depth. A child that is called ``module`` or
    ``_orig_mod`` keeps its name.
    """
    return {_clean_key(model, key): key for key in model.state_dict()}


def as_names_of(model: nn.Module, given: Mapping[str, _Value]) -> dict[str, _Value]:
    """A state dict of a model like this one, under this model's clean names.

    The names may hold what other wrappers put in, or lack what looks like it. All of them are
    read in one way: as they are, without what stands before every one of them, or without parts
    anywhere that wrappers put in. The first way that gives names of the model is taken; if
    none does for all of them, the one that does for most.

    Args:
        model: Dense or low-rank, wrapped or not.
        given: By name; a name that the model does not have keeps its name.
    """
    known = {*names_in_every_form(model)}
    best, most = dict(given), -1
    for read in _readings(given, known):
        found = {read(name): value for name, value in given.items()}
        fitting = len(known & found.keys())
        if len(found) == len(given) and fitting > most:
            best, most = found, fitting
        if most == len(given):
            break
    return best


def is_factored_name(name: str) -> bool:
    """Whether a name of a state dict may be that of a core or a pair: ``in_proj_pair``."""
    return name.rpartition(".")[2].rpartition("_")[2] in ("core", "pair")


def _clean_key(model: nn.Module, key: str) -> str:
    module: nn.Module | None = model
    parts = []
    for part in key.split("."):
        while module is not None and (inner := inner_name(module)) is not None:
            module = module._modules[inner]
            if part == inner:
                break
        else:  # not what a wrapper put in; some of them take it out of the state dict again
            parts.append(part)
            module = None if module is None else module._modules.get(part)
    return ".".join(parts)


def names_in_every_form(model: nn.Module) -> Iterator[str]:
    """Clean names of a model's state dict, with its weights dense, in factors and as pairs."""
    yield from clean_keys(model)
    for name, module in named_modules_clean(model, remove_duplicate=False):
        low_rank_class = low_rank_class_of(module)
        for weight in () if low_rank_class is None else low_rank_class.weights_of(module):
            for own in (weight, *factor_names(weight), pair_name(weight)):
                yield f"{name}.{own}".lstrip(".")


def _readings(given: Iterable[str], known: Iterable[str]) -> Iterator[Callable[[str], str]]:
    """Ways to read the names of a state dict, the most literal first."""
    parts = {name: name.split(".") for name in given}
    front = 0  # so many parts stand before all names
    while len(heads := {".".join(each[front:-1][:1]) for each in parts.values()}) == 1:
        if not heads <= WRAPPER_NAMES:
            break
        front += 1
    shortened = [
        {name: ".".join(each[n:]) for name, each in parts.items()} for n in range(front + 1)
    ]
    for short in shortened:
        yield short.__getitem__
    for short in shortened:
        settled = _settled(short.values(), known)
        yield lambda name, s=short, own=settled: own.get(s[name], name)  # type: ignore[misc]


def _settled(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Each name to the only one of ``known`` that is left when others found theirs.

    A name stands for another one if that is what remains without parts that wrappers put in.
    """
    by_bare: dict[str, list[str]] = {}
    for name in known:
        by_bare.setdefault(_bare(name), []).append(name)
    settled: dict[str, str] = {}
    left = {
        name: [own for own in by_bare.get(_bare(name), ()) if _is_within(own, name)]
        for name in names
    }
    while found := {name: own[0] for name, own in left.items() if len(own) == 1}:
        settled |= found
        taken = set(found.values())
        left = {
            name: [each for each in own if each not in taken]
            for name, own in left.items()
            if name not in found
        }
    return settled


def _is_within(own: str, name: str) -> bool:
    """Whether ``own`` is what some parts of ``name`` give, in order."""
    parts = iter(name.split("."))
    return all(part in parts for part in own.split("."))


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPER_NAMES)
