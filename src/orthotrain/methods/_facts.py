"""Methods and their settings as lines of text that are the same in every process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from numbers import Number
from typing import Any

from torch import Tensor, nn

from orthotrain.methods.protocol import Method, Phase
from orthotrain.methods.select import named_modules_clean, named_parameters_clean


def facts_of(methods: Sequence[Method], model: nn.Module) -> list[str]:
    """The methods that change a training, by name, then each of their settings.

    Modules and parameters are given by their names in the model. An object that is neither a
    number, a text, a container nor a dataclass is given by its type alone: its address differs.
    """
    names: dict[int, str] = {id(each): name for name, each in named_modules_clean(model)}
    names |= {id(each): name for name, each in named_parameters_clean(model)}
    acting = [method for method in methods if method.phase is not Phase.WATCH]
    lines = [f"methods {', '.join(type(method).__name__ for method in acting) or 'none'}"]
    for number, method in enumerate(acting, 1):
        settings: tuple[Field[Any], ...] = fields(method) if is_dataclass(method) else ()
        lines += [
            f"{type(method).__name__} ({number}) {field.name}="
            f"{_described(getattr(method, field.name), names)}"
            for field in settings
        ]
    return lines


def _described(value: object, names: Mapping[int, str]) -> str:
    match value:
        case nn.Module() | nn.Parameter():
            return names.get(id(value), type(value).__name__)
        case Tensor():
            return f"tensor of {tuple(value.shape)} {value.dtype}"
        case None | str() | Number() | Enum():
            return repr(value)
        case Mapping():
            inside = (f"{_described(k, names)}: {_described(v, names)}" for k, v in value.items())
            return f"{{{', '.join(inside)}}}"
        case list() | tuple():
            return f"[{', '.join(_described(each, names) for each in value)}]"
        case set() | frozenset():
            return f"{{{', '.join(sorted(_described(each, names) for each in value))}}}"
        case _ if is_dataclass(value) and not isinstance(value, type):
            inside = (
                f"{f.name}={_described(getattr(value, f.name), names)}" for f in fields(value)
            )
            return f"{type(value).__name__}({', '.join(inside)})"
        case _:
            return getattr(value, "__qualname__", type(value).__qualname__)
