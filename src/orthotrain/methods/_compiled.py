"""Whether ``torch.compile`` runs a model."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from orthotrain.methods._compat import compiler_is_on
from orthotrain.methods.weak_hook import WeakHook

_marks = itertools.count(1)
_compiled: set[int] = set()


def has_compiled_parts(model: nn.Module) -> bool:
    """Whether a module, wrapped or not, or one inside it was given to ``torch.compile``."""
    return any(
        module._compiled_call_impl is not None or "_orig_mod" in module._modules
        for module in model.modules()
    )


class CompiledHook(WeakHook[nn.Module]):
    """Before a forward: notices whether torch compiles the model, or runs what it compiled.

    So it is seen wherever the compiler was called: on the model, around it or on a whole step.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__(model)
        self._mark = 0 if model is None else next(_marks)

    @property
    def was_compiled(self) -> bool:
        """Whether that was noticed."""
        return self._mark in _compiled

    def __call__(self, model: nn.Module, inputs: object) -> None:
        if not torch.compiler.is_compiling():
            if compiler_is_on():  # it calls the hooks of a whole model itself
                _note(self._mark)
        elif not torch.compiler._is_exporting_flag:  # ``is_exporting()`` is wrong in torch 2.9
            _note(self._mark)


def _note(mark: int) -> bool:
    """What torch calls while it compiles; what it returns is a constant of the graph."""
    _compiled.add(mark)
    return True


# What ``torch._dynamo.assume_constant_result`` does; importing that takes as long as torch itself.
_note._dynamo_marked_constant = True  # type: ignore[attr-defined]
