"""What every public function and class asks of its arguments, read from their annotations.

An annotation says already that an argument is a floating-point tensor, a count or a model.
:func:`checked` holds callers to it, so that another kind of value is refused by name before
anything is computed. Ranges and shapes stay with the function. No value of a tensor is read, and
while ``torch.compile`` or ``torch.export`` traces, nothing is checked.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import InitVar
from numbers import Integral
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import jaxtyping
import torch
from torch import Tensor
from torch.optim import Optimizer

from orthotrain._checks import (
    REAL_DTYPES,
    WHOLE_DTYPES,
    described,
    is_dense,
    is_number,
    require_tensor,
)
from orthotrain.errors import ConfigError

_Door = TypeVar("_Door", bound=Callable[..., Any])
_Layer = TypeVar("_Layer")


class _Kind(NamedTuple):
    """A kind of argument.

    Attributes:
        holds: Whether a value is of the kind.
        words: The kind, for messages.
        way: What to try instead of something else.
        dtypes: Of a tensor, what it may hold; None for anything.
        each: Of a sequence, the kind of what is in it.
    """

    holds: Callable[[Any], bool]
    words: str
    way: str
    dtypes: frozenset[torch.dtype] | None = None
    each: _Kind | None = None


def checked(door: _Door) -> _Door:
    """A function or class whose callers are held to the annotations of its arguments.

    Raises:
        ConfigError: When called: an argument is of another kind than its annotation says.
    """
    if not isinstance(door, type):
        return typing.cast(_Door, _wrapped(door, door.__qualname__, lambda: door))
    constructor = door.__init__  # type: ignore[misc]
    # Of a class the annotations are looked up where each was written.
    dataclass = hasattr(door, "__dataclass_fields__")
    source = (lambda: door) if dataclass else (lambda: constructor)
    door.__init__ = _wrapped(constructor, door.__qualname__, source)  # type: ignore[misc]
    return door


def built(layer: Callable[..., _Layer], *args: Any, **kwargs: Any) -> _Layer:
    """A layer of torch with a caller's arguments.

    Raises:
        ConfigError: torch refuses them; the message has its reason.
    """
    try:
        return layer(*args, **kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        name = getattr(layer, "__name__", str(layer))
        raise ConfigError(
            f"torch.nn.{name} refuses these arguments: {error}; give them as its page says"
        ) from error


def _wrapped(function: Callable[..., Any], owner: str, source: Callable[[], Any]) -> Any:
    kinds: dict[str, _Kind] = {}
    order: list[str] = []

    @functools.wraps(function)
    def held(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not order:
            # At the first call: then every name that annotations use is there.
            kinds.update(_kinds_of(source()))
            order.extend(_by_position(function))
        for name, value in zip(order, args, strict=False):
            if name in kinds and not kinds[name].holds(value):
                _refuse(owner, name, value, kinds[name])
        for name, value in kwargs.items():
            if name in kinds and not kinds[name].holds(value):
                _refuse(owner, name, value, kinds[name])
        return function(*args, **kwargs)

    return held


def _refuse(owner: str, name: str, value: Any, kind: _Kind) -> None:
    if isinstance(value, torch.fx.Proxy):  # stands for a tensor while torch.fx traces
        return
    if kind.words == _TENSOR or (_TENSOR in kind.words and isinstance(value, Tensor)):
        # Says which of its properties is wrong.
        require_tensor(owner, name, value, kind.dtypes)
    if kind.each is not None and _is_sequence(value):
        wrong = next(i for i, one in enumerate(value) if not kind.each.holds(one))
        _refuse(owner, f"{name}[{wrong}]", value[wrong], kind.each)
    raise ConfigError(
        f"{owner} needs {name} to be {kind.words}, got {described(value)}; {kind.way}"
    )


def _by_position(function: Callable[..., Any]) -> list[str]:
    """Parameters that may be given by position, in order; ``""`` where there is none."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in kinds] or [""]


def _kinds_of(source: Any) -> dict[str, _Kind]:
    hints = typing.get_type_hints(source)
    hints.pop("return", None)
    kinds = ((name, kind_of(hint)) for name, hint in hints.items())
    return {name: kind for name, kind in kinds if kind is not None}


_TENSOR = "a tensor"
_TEXT = _Kind(lambda value: isinstance(value, str), "text", "put it in quotes, or use str(...)")
_PLAIN: dict[Any, _Kind] = {
    bool: _Kind(lambda value: isinstance(value, bool), "True or False", "use bool(...)"),
    int: _Kind(
        lambda value: isinstance(value, Integral) and not isinstance(value, bool),
        "a whole number",
        "round a computed one with int(...)",
    ),
    float: _Kind(is_number, "a number", "NaN and truth values are none; use float(...) for text"),
    str: _TEXT,
    type(None): _Kind(lambda value: value is None, "None", "leave it out"),
    os.PathLike: _Kind(lambda value: isinstance(value, os.PathLike), "a path", "use str(...)"),
}


def _is_device(value: object) -> bool:
    """Whether a value names a device; None is the default one."""
    if value is None or isinstance(value, torch.device):
        return True
    if isinstance(value, bool) or not isinstance(value, str | int):
        return False
    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True


_DEVICE = _Kind(_is_device, "a device", "such as 'cpu' or 'cuda:0'")


def kind_of(hint: Any) -> _Kind | None:
    """The kind that an annotation asks for; None where it takes everything."""
    if isinstance(hint, InitVar):
        hint = hint.type
    if isinstance(hint, TypeVar):
        hint = hint.__bound__
    # An optimizer may come wrapped; who takes one unwraps it and says what is wrong.
    if hint in (Any, object, Optimizer) or hint is None:
        return None
    origin = get_origin(hint)
    for plain in (hint, origin):
        if plain in _PLAIN:
            return _PLAIN[plain]
    if torch.device in get_args(hint):
        return _DEVICE
    if origin in (Union, types.UnionType):
        return _any_of([kind_of(each) for each in get_args(hint)])
    if origin is Literal:
        return _choice_of(get_args(hint))
    return _instance_of(hint) if origin is None else _container_of(origin, get_args(hint))


def _instance_of(hint: Any) -> _Kind | None:
    """A tensor, or an instance of another class."""
    if not isinstance(hint, type) or getattr(hint, "_is_protocol", False):
        return None
    if getattr(hint, "checked_by_taker", False):
        return None
    if issubclass(hint, Tensor | jaxtyping.AbstractArray):
        return _tensor_kind(hint)
    words = f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"
    return _Kind(lambda value: isinstance(value, hint), words, "pass an instance of it")


def _tensor_kind(hint: Any) -> _Kind:
    """A dense tensor; of an array annotation, of its kind of numbers."""
    named: set[Any] = {getattr(torch, name, None) for name in getattr(hint, "dtypes", ())}
    # Not those of eight bits, with which nothing can be computed.
    dtypes = frozenset(named & {*REAL_DTYPES, *WHOLE_DTYPES, torch.bool}) or None
    return _Kind(
        lambda value: is_dense(value, dtypes), _TENSOR, "make one with torch.as_tensor", dtypes
    )


def _choice_of(choices: tuple[Any, ...]) -> _Kind:
    # Not ``in`` alone: an array compares entry by entry, and True is 1.
    def holds(value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in choices)

    words = f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else repr(choices[0])
    return _Kind(holds, words, "leave it out, or spell it so")


def _any_of(kinds: list[_Kind | None]) -> _Kind | None:
    """What one of several kinds takes."""
    members = [kind for kind in kinds if kind is not None]
    if len(members) < len(kinds):
        return None
    tests = [kind.holds for kind in members]
    dtypes = next((kind.dtypes for kind in members if kind.words == _TENSOR), None)
    each = next((kind.each for kind in members if kind.each is not None), None)
    words = list(dict.fromkeys(kind.words for kind in members))
    return _Kind(
        lambda value: any(test(value) for test in tests),
        " or ".join(words),
        members[0].way,
        dtypes,
        each,
    )


def _container_of(origin: Any, members: tuple[Any, ...]) -> _Kind | None:
    """Functions, mappings and sequences, the latter with what is in them."""
    if origin is Callable:
        return _Kind(callable, "a function", "pass the function itself, not what it returns")
    if not (isinstance(origin, type) and issubclass(origin, Iterable)):
        return None
    if issubclass(origin, Mapping):
        return _Kind(lambda value: isinstance(value, Mapping), "a mapping", "use dict(...)")
    if not issubclass(origin, Sequence):
        return _Kind(lambda value: isinstance(value, Iterable), "an iterable", "use a list")
    each = kind_of(members[0]) if members else None

    def holds(value: Any) -> bool:
        return _is_sequence(value) and (each is None or all(map(each.holds, value)))

    inside = "" if each is None else f", each {each.words}"
    return _Kind(holds, f"a sequence{inside}", "use a list", each=each)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
