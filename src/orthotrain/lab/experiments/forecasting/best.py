"""The model with the lowest loss so far: early stopping without an early end."""

from __future__ import annotations

from typing import Any

from torch import nn

from orthotrain.lowrank import follow
from orthotrain.methods.copies import frozen_copy


class BestModel:
    """A copy of the model at its best look, among looks at the structure that it has now.

    A dense model is no result of a method that makes it low-rank later. So a change of ranks
    begins anew.

    Args:
        model: What is trained.

    Attributes:
        loss: Of the model kept; infinite before the first look.
        step: At which it was looked at.
        looks: Among how many it was the best.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copy: nn.Module | None = None
        self._shapes: list[tuple[int, ...]] = []
        self.loss = float("inf")
        self.step = 0
        self.looks = 0

    def looked(self, loss: float, *, step: int) -> None:
        """Keep the model as it is now, if ``loss`` is lower than that of the one kept."""
        shapes = [tuple(t.shape) for t in self._model.state_dict().values()]
        same = shapes == self._shapes
        self.looks = self.looks + 1 if same else 1
        if same and loss >= self.loss:
            return
        self._copy, self._shapes = frozen_copy(self._model), shapes
        self.loss, self.step = loss, step

    def model(self) -> nn.Module:
        """The model kept; the trained one itself before the first look."""
        return self._model if self._copy is None else self._copy

    def state_dict(self) -> dict[str, Any]:
        """What the next look is compared with, and its model."""
        kept = None if self._copy is None else self._copy.state_dict()
        return {"loss": self.loss, "step": self.step, "looks": self.looks, "model": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the trained model has been loaded before."""
        self.loss, self.step = float(state["loss"]), int(state["step"])
        self.looks = int(state["looks"])
        if state["model"] is None:
            self._copy, self._shapes = None, []
            return
        self._copy = follow(frozen_copy(self._model))
        self._copy.load_state_dict(state["model"])
        self._shapes = [tuple(t.shape) for t in self._copy.state_dict().values()]
