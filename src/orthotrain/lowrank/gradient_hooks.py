"""Hooks on a weight's gradient: which of them need the shape that the weight has now.

A weight that becomes low-rank keeps its hooks, and they are given gradients of factors. A hook that
clips, scales or logs does not mind. One that holds a mask, or takes rows out of what it is
given, would stop the run or change other numbers than it means. A hook cannot be tried without
doing what it does, so its code is read.
"""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

from torch import Tensor, nn
from torch.optim import Optimizer

from orthotrain.methods.weak_hook import WeakHook

# Methods of a tensor whose arguments are places or sizes.
_BY_PLACE: Final = frozenset(
    {
        "chunk", "diagonal", "fill_diagonal_", "index_add_", "index_copy_", "index_fill",
        "index_fill_", "masked_fill", "masked_fill_", "masked_scatter_", "narrow", "reshape",
        "select", "split", "tril", "tril_", "triu", "triu_", "unflatten", "view", "view_as",
    }
)  # fmt: skip
# What fills a list or a mapping: tensors in there are what the hook has kept.
_FILLS: Final = frozenset({"append", "extend", "update", "setdefault", "__setitem__"})
_DEPTH: Final = 3  # functions that call functions


def hook_that_needs_the_shape(parameter: nn.Parameter) -> str | None:
    """Why a hook on the gradient of a weight needs the weight's shape; ``None`` where none does."""
    on_gradient: Mapping[int, Any] = parameter._backward_hooks or {}
    on_parameter: Mapping[int, Any] = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
    for hook in (*on_gradient.values(), *on_parameter.values()):
        if isinstance(hook, WeakHook):
            continue
        if (reason := _reason(hook, parameter, _DEPTH)) is not None:
            name = getattr(hook, "__qualname__", type(hook).__qualname__)
            return f"its gradient has a hook, {name}, that {reason}, so it needs the dense shape"
    return None


def _reason(function: Any, own: Tensor, depth: int) -> str | None:
    code, held = _code_of(function), list(_held_by(function))
    for value in held:
        if isinstance(value, Tensor) and value is not own and _goes_with(value, own):
            return f"holds a tensor of shape {tuple(value.shape)}"
    if code is not None:
        if by_place := sorted(_BY_PLACE.intersection(code.co_names) - _flattening(code)):
            return f"calls {by_place[0]}"
        if _takes_places(code, containers=any(isinstance(v, dict | list) for v in held)):
            return "takes a part of what it is given"
    called = [v for v in held if isinstance(v, FunctionType | MethodType | functools.partial)]
    reasons = (_reason(each, own, depth - 1) for each in (called if depth else ()))
    return next((reason for reason in reasons if reason is not None), None)


def _goes_with(held: Tensor, own: Tensor) -> bool:
    """Whether a tensor can be multiplied with the weight's gradient, entry by entry."""
    pairs = zip(reversed(held.shape), reversed(own.shape), strict=False)
    fits = held.ndim <= own.ndim and all(a in (1, b) for a, b in pairs)
    return held.numel() > 1 and fits


def _takes_places(code: CodeType, *, containers: bool) -> bool:
    """Whether code takes parts; where it has containers of its own, only slices are sure."""
    steps = list(dis.get_instructions(code))
    slices = any("SLICE" in step.opname for step in steps)
    # An entry by a text is one of a mapping.
    parts = (
        "SUBSCR" in step.opname and not _is_text(before)
        for before, step in itertools.pairwise(steps)
    )
    return slices or (not containers and any(parts))


def _is_text(step: dis.Instruction) -> bool:
    return step.opname == "LOAD_CONST" and isinstance(step.argval, str)


def _flattening(code: CodeType) -> set[str]:
    """``view`` and ``reshape``, where they are called with -1 alone, which fits every shape."""
    steps = [s for s in dis.get_instructions(code) if s.opname not in ("PRECALL", "CACHE")]
    calls = list(zip(steps, steps[1:], steps[2:], strict=False))
    found: dict[str, list[bool]] = {"view": [], "reshape": []}
    for name, argument, call in calls:
        if name.argval in found and name.opname.startswith("LOAD"):
            found[name.argval].append(
                argument.argval == -1 and call.opname == "CALL" and call.arg == 1
            )
    return {name for name, alone in found.items() if alone and all(alone)}


def _code_of(function: Any) -> CodeType | None:
    while isinstance(function, functools.partial):
        function = function.func
    if not isinstance(function, FunctionType | MethodType):
        function = getattr(type(function), "__call__", None)  # noqa: B004  # its code is wanted
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _held_by(function: Any) -> Iterator[Any]:
    """What a function was given before it is called: in a closure, by name, as a default."""
    if isinstance(function, functools.partial):
        yield from _opened([*function.args, *function.keywords.values()])
        yield from _held_by(function.func)
    elif isinstance(function, MethodType):
        yield from _opened(_attributes(function.__self__))
        yield from _held_by(function.__func__)
    elif isinstance(function, FunctionType):
        yield from _opened(
            [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        )
        try:
            seen = inspect.getclosurevars(function)
        except ValueError:  # a name that has no value yet
            return
        code = function.__code__
        # Not the names of attributes, which are among those of the code.
        read = {s.argval for s in dis.get_instructions(code) if s.opname.startswith("LOAD_GLOBAL")}
        values = [v for name, v in seen.globals.items() if name in read]
        fills = bool(_FILLS.intersection(code.co_names)) or any(
            step.opname == "STORE_SUBSCR" and _is_text(before)
            for before, step in itertools.pairwise(dis.get_instructions(code))
        )
        values += seen.nonlocals.values()
        yield from values if fills else _opened(values)
    else:
        yield from _opened(_attributes(function))


def _attributes(thing: object) -> list[object]:
    if isinstance(thing, nn.Module | Optimizer | Tensor):
        return []
    return list(getattr(thing, "__dict__", {}).values())


def _opened(values: list[Any]) -> Iterator[Any]:
    """Values, and what lists and mappings of tensors among them hold."""
    for value in values:
        yield value
        if isinstance(value, Mapping):
            yield from (v for v in value.values() if isinstance(v, Tensor))
        elif isinstance(value, list | tuple):
            yield from (v for v in value if isinstance(v, Tensor))
