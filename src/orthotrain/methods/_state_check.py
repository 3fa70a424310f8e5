"""Before a step: does the optimizer's state fit the model, and is a resumed run complete."""

from __future__ import annotations

from typing import Final

from torch import nn
from torch.optim import Optimizer

from orthotrain._resized import must_look_at
from orthotrain._sharded import held_by, require_as_attached, require_trains, sharding_of
from orthotrain.errors import StateError
from orthotrain.methods._optimizer import is_no_step
from orthotrain.methods.optimizer_state import check_shapes, drop_outlived

#: What to do about a run that goes on without the state of its handle.
STATE_IS_MISSING: Final = (
    "add handle.load_state_dict(...) with what handle.state_dict() gave beside the checkpoint, "
    "before the first step. If the checkpoint is of a run without methods, load it before attach"
)


class StateCheck:
    """What a handle knows of state dicts that were loaded, and what it asks before a step."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model: nn.Module | None = model  # until the first step
        self._sharding, self._held = sharding_of(model), held_by(optimizer)
        # From the start: a checkpoint may have been loaded before the handle was there.
        self._expected = True
        self._is_first = True
        self._has_own = False
        self._lacks_own = False

    def expect(self) -> None:
        """Compare shapes before the next step, and refuse what does not fit."""
        self._expected, self._is_first = True, False

    def optimizer_loaded(self, optimizer: Optimizer, *, at_start: bool) -> None:
        """Take notice of a loaded state, and whether the handle is at step 0."""
        self.expect()
        if at_start and not self._has_own:
            self._lacks_own = _has_begun(optimizer)

    def handle_loaded(self) -> None:
        """Take notice that the handle has its own part of a checkpoint."""
        self.expect()
        self._has_own, self._lacks_own = True, False

    def before_step(self, optimizer: Optimizer, methods: str) -> None:
        """Drop state that the model's form outlived, refuse what was loaded and does not fit.

        Raises:
            ConfigError: The first step of a model that was sharded since ``attach``.
            StateError: Loaded state of another shape, or a run that goes on without the state of
                its handle.
        """
        if self._model is not None:
            require_as_attached(self._model, self._sharding)
            require_trains(self._model, optimizer, self._held)
            self._model = None
        if must_look_at(optimizer) and (self._is_first or not self._expected):
            drop_outlived(optimizer)
        if self._expected:
            check_shapes(optimizer)
            self._expected = self._is_first = False
        if self._lacks_own and methods and not is_no_step(optimizer):
            raise StateError(
                f"{methods}: {type(optimizer).__name__} took the state of a run that has begun, "
                f"and the handle is at step 0; {STATE_IS_MISSING}"
            )


def _has_begun(optimizer: Optimizer) -> bool:
    """Whether there is state of a step; Adagrad and others have some before the first."""
    states = [state for state in optimizer.state.values() if state]
    return any(bool(state.get("step", 1)) for state in states)
