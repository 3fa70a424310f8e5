"""What a trainer has where branches are compared: a teacher, counted operations, looks at cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from orthotrain.lab.run.compute import Meter
from orthotrain.lab.run.trainer import Line
from orthotrain.lowrank import Branch, teacher_loss
from orthotrain.lowrank.schedule import Schedule
from orthotrain.methods.copies import frozen_copy

#: Measures a model on the validation part.
Look = Callable[[nn.Module], float]


@dataclass
class Branching:
    """The teacher, the operations so far, and the looks right before and right after each cut.

    Attributes:
        model: What is trained.
        measured: Name of what a look measures, in lines of the record.
        teacher: A finished model to learn from, in evaluation mode.
        teacher_share: Its share of the loss.
        compute_before: Operations of the training that this one starts from or learns from.
        cuts: When the model is cut on its way; None where nothing is looked at.
        branch: The cut of a finished model that this training starts from.
        cut_compute: Operations that this cut took.
        meter: Operations so far: those of the cut, then of the steps, the teacher's included.
        before: What was measured just before the last cut; None before the first.
    """

    model: nn.Module
    measured: str
    teacher: nn.Module | None = None
    teacher_share: float = 0.5
    compute_before: int = 0
    cuts: Schedule | None = None
    branch: Branch | None = None
    cut_compute: int = 0
    meter: Meter = field(init=False)
    before: float | None = None

    def __post_init__(self) -> None:
        self.meter = Meter(self.model, operations=self.cut_compute)

    def passes(self) -> AbstractContextManager[None]:
        """Around the forward and backward passes of a step."""
        return self.meter.passes()

    def taught(self, inputs: Tensor) -> Tensor | None:
        """The scores of the teacher; None without one."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            scores: Tensor = self.teacher(inputs)
        return scores

    def loss(self, loss: Tensor, scores: Tensor, taught: Tensor | None) -> Tensor:
        """The loss of the labels, mixed with the cross-entropy with the teacher's probabilities.

        Args:
            loss: Of the labels, one number.
            scores: ``(n, classes)`` float32, those of the network.
            taught: ``(n, classes)``, those of the teacher; None leaves the loss as it is.
        """
        if taught is None:
            return loss
        return teacher_loss(scores, taught, loss, weight=self.teacher_share)

    def before_first(self, steps: int, look: Look) -> Iterable[Line]:
        """The line of the cut that a branch starts with; called before each step.

        As the other lines it runs when the time of the step is taken, so it keeps a copy.
        """
        if steps or self.branch is None:
            return ()
        return self._first_cut(frozen_copy(self.model), look, self.meter.operations)

    def _first_cut(self, cut: nn.Module, look: Look, operations: int) -> Iterator[Line]:
        assert self.branch is not None
        yield self._cut_line(look(self.branch.teacher), look(cut), operations)

    def around_cuts(self, steps: int, look: Look) -> Iterable[Line]:
        """Lines of a cut; called after each step, they run when the time of the step is taken."""
        return self._looks(steps, look, changed=self.meter.stepped())

    def _looks(self, steps: int, look: Look, *, changed: bool) -> Iterator[Line]:
        if self.cuts is None:
            return
        if changed:
            yield self._cut_line(self.before, look(self.model), self.meter.operations)
        if self.cuts.due(steps + 1):
            self.before = look(self.model)

    def _cut_line(self, before: float | None, after: float, operations: int) -> Line:
        name = self.measured
        return {"kind": "cut", name: after, f"{name}_before": before, "compute": operations}

    def fields(self) -> Mapping[str, int]:
        """What result.json says."""
        return {"compute": self.meter.operations, "compute_before": self.compute_before}

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {"meter": self.meter.state_dict(), "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.meter.load_state_dict(state["meter"])
        self.before = state["before"]
