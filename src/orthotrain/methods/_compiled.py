"""Whether ``torch.compile`` runs a model, and in how many versions."""

from __future__ import annotations

import itertools
import sys

import torch
from torch import nn

from orthotrain.methods._compat import count_version, versions_of
from orthotrain.methods.weak_hook import WeakHook

_marks = itertools.count(1)


def has_compiled_parts(model: nn.Module) -> bool:
    """Whether a module, wrapped or not, or one inside it was given to ``torch.compile``."""
    return any(
        module._compiled_call_impl is not None or "_orig_mod" in module._modules
        for module in model.modules()
    )


def limit_of_versions() -> int:
    """How many versions of one function torch compiles before it runs that uncompiled."""
    dynamo = sys.modules.get("torch._dynamo")
    return sys.maxsize if dynamo is None else int(dynamo.config.recompile_limit)


class CompiledHook(WeakHook[nn.Module]):
    """Before a forward: nothing, but torch goes through it whenever it compiles the model.

    So it is seen wherever the compiler was called: on the model, around it or on a whole step.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__(model)
        self._mark = 0 if model is None else next(_marks)

    @property
    def versions(self) -> int:
        """How often torch has compiled the function that the model is called in; 0 for never."""
        return versions_of(self._mark)

    def __call__(self, model: nn.Module, inputs: object) -> None:
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            count_version(self._mark)
