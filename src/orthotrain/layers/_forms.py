"""Which low-rank class stands for a dense one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TypeVar

from torch import nn

Form = TypeVar("Form", bound=type[nn.Module])

# What registers a form. The package loads each of its modules on first use alone.
_MODULES = (
    *("low_rank", "low_rank_attention", "low_rank_conv", "low_rank_conv_transpose"),
    *("low_rank_embedding", "low_rank_recurrent"),
)
_FORMS: dict[str, type[nn.Module]] = {}


def register_low_rank(*dense_classes: str) -> Callable[[Form], Form]:
    """Class decorator: the low-rank form of these dense classes, by qualified name.

    By name, so that a class of another library needs no import.
    """

    def register(form: Form) -> Form:
        _FORMS.update(dict.fromkeys(dense_classes, form))
        return form

    return register


def form_of(dense: type[nn.Module]) -> type[nn.Module] | None:
    """The low-rank class for a dense one; None where there is none."""
    _load()
    return _FORMS.get(f"{dense.__module__}.{dense.__qualname__}")


@cache
def _load() -> None:
    for name in _MODULES:
        import_module(f"orthotrain.layers.{name}")
