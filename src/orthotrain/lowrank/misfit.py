"""Whether a state dict is that of a model, whatever form its weights have: asked before loading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from orthotrain.layers._factor_names import factor_names, pair_name
from orthotrain.layers._factors import LowRankModule, low_rank_class_of, weight_parameter
from orthotrain.lowrank.names import as_names_of, clean_keys
from orthotrain.methods.select import named_modules_clean, unwrap

Shape = tuple[int, ...]
_NAMED = 3  # of each kind; a model has hundreds
_LOADS_PLAINLY = ("torch.nn.", "orthotrain.")


class Misfit(NamedTuple):
    """How the tensors of a state dict differ from what a model takes; empty where they fit."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    of_other_shape: tuple[str, ...]

    def __str__(self) -> str:
        kinds = (("it lacks", self.missing), ("it has", self.unexpected),
                 ("of another shape:", self.of_other_shape))  # fmt: skip
        return "; ".join(f"{words} {_some(names)}" for words, names in kinds if names)


class _Place(NamedTuple):
    """Where values may go: the object behind it, the names it may have, which shapes fit."""

    identity: int
    names: tuple[str, ...]
    shape: Shape
    fits: Callable[[Mapping[str, Shape]], bool]


def misfit(model: nn.Module, shapes: Mapping[str, Shape]) -> Misfit:
    """Compare the names and shapes of a state dict with a model; nothing is changed.

    Only what cannot be loaded is told. A buffer may change its shape as it is loaded, and a
    parameter without a shape (``LazyLinear``) takes any. A module with a
    ``_load_from_state_dict`` of its own may take other names and shapes than it has.

    Args:
        model: Dense or low-rank, wrapped or not.
        shapes: By name. Each weight may be there dense, in factors or as a pair, of any rank. Tied
            weights may be there once.
    """
    given = as_names_of(model, shapes)
    missing: dict[str, int] = {}
    found: set[int] = set()
    other = []
    for place in _places(unwrap(model)):
        held = {name: given.pop(name) for name in place.names if name in given}
        if not held:
            missing[place.names[0]] = place.identity
        elif not place.fits(held):
            there = ", ".join(map(str, held.values()))
            other.append(f"{place.names[0]} ({there} there, {place.shape} in the model)")
        if held:
            found.add(place.identity)
    renames = _prefixes_of_own_loading(unwrap(model))
    lost = [name for name, identity in missing.items() if identity not in found]
    lost, more = ([n for n in names if not n.startswith(renames)] for names in (lost, [*given]))
    return Misfit(tuple(lost), tuple(more), tuple(other))


def shapes_of(state_dict: Mapping[str, Any]) -> dict[str, Shape]:
    """The shapes of the tensors in a state dict; ``()`` of one that has none yet."""
    return {
        name: () if is_lazy(tensor) else tuple(tensor.shape)
        for name, tensor in state_dict.items()
        if is_lazy(tensor) or hasattr(tensor, "shape")
    }


def is_renamed(model: nn.Module, shapes: Mapping[str, Shape]) -> bool:
    """Whether a state dict has as many tensors of each shape as the model, each named once."""
    state = model.state_dict(keep_vars=True)
    own = {id(state[name]): shape for name, shape in shapes_of(state).items()}
    return Counter(own.values()) == Counter(shapes.values())


def _places(model: nn.Module) -> Sequence[_Place]:
    places, known = [], set[str]()
    for name, module in named_modules_clean(model, remove_duplicate=False):
        low_rank_class = low_rank_class_of(module)
        for weight in () if low_rank_class is None else low_rank_class.weights_of(module):
            parameter = weight_parameter(module, weight)
            if parameter is None or low_rank_class is None:
                continue
            every = (weight, *factor_names(weight), pair_name(weight))
            names = tuple(f"{name}.{own}".lstrip(".") for own in every)
            layouts = low_rank_class.layouts(module, weight)
            fits = _fits_in_factors(low_rank_class, module, weight, names)
            places.append(_Place(id(parameter), names, layouts[0].shape, fits))
            known |= {*names}
    state = model.state_dict(keep_vars=True)
    shapes = shapes_of(state)
    free = {
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None and (is_lazy(parameter) or _loads_in_its_own_way(module))
    }
    for clean, key in clean_keys(model).items():
        if clean not in known and key in shapes:
            fixed = isinstance(state[key], nn.Parameter) and id(state[key]) not in free
            fits = partial(_has_shape, shapes[key]) if fixed else _any
            places.append(_Place(id(state[key]), (clean,), shapes[key], fits))
    return places


def _has_shape(shape: Shape, held: Mapping[str, Shape]) -> bool:
    return {*held.values()} == {shape}


def _any(_: Mapping[str, Shape]) -> bool:
    return True


def _loads_in_its_own_way(module: nn.Module) -> bool:
    return not type(module)._load_from_state_dict.__module__.startswith(_LOADS_PLAINLY)


def _prefixes_of_own_loading(model: nn.Module) -> tuple[str, ...]:
    """How names begin whose module, or one around it, may take them as others."""
    return tuple(
        f"{name}." if name else ""
        for name, module in named_modules_clean(model, remove_duplicate=False)
        if _loads_in_its_own_way(module)
    )


def _fits_in_factors(
    low_rank_class: type[LowRankModule], module: nn.Module, weight: str, names: tuple[str, ...]
) -> Callable[[Mapping[str, Shape]], bool]:
    """Whether shapes by name are those of the weight, of its three factors or of its pair."""
    dense, *three, pair = names
    layouts = low_rank_class.layouts(module, weight)

    def fits(held: Mapping[str, Shape]) -> bool:
        if held.keys() == {dense}:
            return held[dense] == layouts[0].shape
        if held.keys() == {pair}:
            rank = held[pair][-2] if len(held[pair]) > 1 else 0
            return any(
                each.pair_shape(rank) == held[pair]
                for each in layouts
                if 0 < rank <= each.full_rank
            )
        if held.keys() == {*three}:
            shapes = tuple(held[name] for name in three)
            rank = shapes[1][-1] if shapes[1] else 0
            return any(
                each.factor_shapes(rank) == shapes for each in layouts if 0 < rank <= each.full_rank
            )
        return False

    return fits


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
