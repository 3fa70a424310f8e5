"""What a trainer has where branches are compared: a teacher, counted operations, looks at cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.branches.variants import DENSE, BranchedVariant
from orthotrain.lab.run.compute import Meter
from orthotrain.lab.run.record import read_json
from orthotrain.lab.run.restore import read_network
from orthotrain.lab.run.trainer import Line
from orthotrain.lowrank import rate_after_cut, teacher_loss
from orthotrain.lowrank.schedule import Schedule
from orthotrain.methods.copies import frozen_copy


@dataclass
class Branching:
    """The teacher, the operations so far, and the looks right before and right after each cut.

    Attributes:
        model: What is trained.
        measured: Name of what a look measures, in lines of the record.
        teacher: A finished model to learn from, in evaluation mode.
        teacher_share: Its share of the loss.
        compute_before: Operations of the training that this one starts from or learns from.
        cuts: When the model is cut; None where nothing is looked at.
        meter: Operations of the steps so far, the teacher's included.
        before: What was measured just before the last cut; None before the first.
    """

    model: nn.Module
    measured: str
    teacher: nn.Module | None = None
    teacher_share: float = 0.5
    compute_before: int = 0
    cuts: Schedule | None = None
    meter: Meter = field(init=False)
    before: float | None = None

    def __post_init__(self) -> None:
        self.meter = Meter(self.model)

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

    def around_cuts(self, steps: int, look: Callable[[], float]) -> Iterator[Line]:
        """Lines of a cut; called after each step, they run when the time of the step is taken."""
        return self._looks(steps, look, changed=self.meter.stepped())

    def _looks(self, steps: int, look: Callable[[], float], *, changed: bool) -> Iterator[Line]:
        if self.cuts is None:
            return
        if changed:
            yield {"kind": "cut", self.measured: look(), f"{self.measured}_before": self.before}
        if self.cuts.due(steps + 1):
            self.before = look()

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


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        model: What is trained, on its device.
        branches: Whether it is a copy of the finished dense model.
        teacher: The finished dense model, where it teaches.
        compute_before: Operations of the dense training, where it was needed.
    """

    model: nn.Module
    branches: bool = False
    teacher: nn.Module | None = None
    compute_before: int = 0


def start_of(
    variant: BranchedVariant, *, fresh: Callable[[], nn.Module], device: torch.device
) -> Start:
    """The finished dense model or a fresh one.

    Args:
        variant: Which of them, and whether there is a teacher.
        fresh: Makes a network with new weights.
        device: Where all of them go.

    Raises:
        CheckpointError: The finished dense training is needed and its checkpoint is damaged.
        ConfigError: It is needed and was not named.
    """
    if variant.dense is None:
        if variant.needs == DENSE:
            raise ConfigError(
                f"variant {variant.name} is built from the finished {DENSE} training of its seed; "
                "train it in one run with that, or give its folder to with_trainings"
            )
        return Start(fresh().to(device))
    dense = read_network(variant.dense.checkpoint).to(device)
    branches = variant.branch is not None
    return Start(
        model=dense.train() if branches else fresh().to(device),
        branches=branches,
        teacher=frozen_copy(dense) if variant.teacher else None,
        compute_before=read_json(variant.dense.result)["compute"],
    )


@dataclass(frozen=True)
class OwnRate:
    """AdamW of a training whose rate is its own.

    Attributes:
        lr: Peak learning rate.
        warmup_fraction: Share of its steps spent on the warm-up.
        weight_decay: Decoupled weight decay of matrices.
        min_lr: Learning rate of the last step.
    """

    lr: float
    warmup_fraction: float
    weight_decay: float
    min_lr: float = 0.0


def peak_rate(rate: float, *, branches: bool, steps: int, dense_steps: int) -> float:
    """The peak of a training's schedule: that of dense training, or what follows for a branch."""
    return rate_after_cut(rate, steps=steps, dense_steps=dense_steps) if branches else rate
