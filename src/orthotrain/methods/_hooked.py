"""What the hooks on a model call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from orthotrain.methods.protocol import Method, Run


@runtime_checkable  # for checkers of types at run time
class Hooked(Protocol):
    """What a hook on the model knows of the handle it works for."""

    @property
    def run(self) -> Run:
        """Model, optimizer and step count."""

    @property
    def auto(self) -> bool:
        """Whether the optimizer's own step calls the methods."""

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name."""

    def observe(self, loss: Tensor | float) -> None:
        """Take a training loss."""

    def model_loaded(self) -> None:
        """Take notice that the model took values, and perhaps shapes, from a state dict."""
