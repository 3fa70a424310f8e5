"""Layers while a tool traces them: sizes left free for it, and one node for ``torch.fx``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from orthotrain.layers._rank_symbols import count_version


def exporting() -> bool:
    """Whether ``torch.export``, ``torch.jit.trace`` or ``torch.onnx.export`` records the call.

    Then nothing may be decided by the size of a batch: the decision, and with it the size, would
    be part of what is recorded.
    """
    tracing: bool = torch._C._get_tracing_state() is not None
    # What ``is_exporting`` returns; torch 2.9 takes that for true in whatever it compiles.
    exporting: bool = torch.compiler._is_exporting_flag
    return exporting or tracing


def transformed() -> bool:
    """Whether a transform of ``torch.func`` (``vmap``, ``grad``, ``jvp``) runs around the call."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def holds_for_sure(condition: Any) -> bool:
    """Whether a comparison of sizes holds, also for every size that is still to come.

    While a graph is compiled whose ranks are symbols, a question that depends on one is answered
    with no. Else the answer would be part of the graph, which a cut would then compile anew.

    Args:
        condition: A bool, or torch's symbol of one.
    """
    if not torch.compiler.is_compiling():
        return bool(condition)
    count_version()
    known: bool = torch.fx.experimental.symbolic_shapes.statically_known_true(condition)
    return known


_Call = TypeVar("_Call", bound=Callable[..., Any])


def untraced(function: _Call) -> _Call:
    """``torch.compiler.disable``, made when a graph is traced first.

    It imports the whole compiler, which takes as long as importing torch.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return function(*args, **kwargs)

    return cast(_Call, call)


def leaf(module: nn.Module, *args: Any) -> Tensor:
    """The call of a module as one node of a ``torch.fx`` graph, as torch's own layers are.

    Args:
        module: Called with ``args``, of which one is a ``torch.fx.Proxy``.
        args: By position.
    """
    tracer: Any = next(a.tracer for a in args if isinstance(a, torch.fx.Proxy))
    node: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(module), args, {})
    return node
