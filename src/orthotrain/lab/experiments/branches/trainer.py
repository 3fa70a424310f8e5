"""Training on batches of windows, with or without a teacher, with or without a cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from orthotrain.data.windows import WindowStream
from orthotrain.lab.experiments.branches.branching import Branching
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.sizes import sizes_and_times
from orthotrain.lab.run.team import ALONE, Team
from orthotrain.lab.run.trainer import Cadence, Ending, Line, Step
from orthotrain.methods.handle import Handle


class WindowsRecord(Protocol):
    """What is written how often."""

    @property
    def log_every_steps(self) -> int: ...  # noqa: D102
    @property
    def eval_every_steps(self) -> int: ...  # noqa: D102
    @property
    def checkpoint_every_steps(self) -> int: ...  # noqa: D102


@dataclass
class WindowTrainer(ABC):
    """Model, optimizer, scheduler, methods and batches, with the steps done so far.

    Attributes:
        batches: Windows of the training part.
        batch_size: Windows in each batch of all processes.
        model: Network, on the device that trains.
        optimizer: Its optimizer.
        scheduler: Steps once per optimizer step.
        handle: The attached methods.
        network: What rebuilds the network from a checkpoint.
        total_steps: Optimizer steps of the whole training.
        branching: Its teacher, its operations and its looks at cuts.
        clip_norm: Largest gradient norm; None for no clipping.
        record: What is written how often.
        settings: What result.json says about the training.
        steps: Optimizer steps done.
        team: The processes that share each batch.
    """

    #: What a state consists of, in the order in which it is loaded.
    parts: ClassVar[tuple[str, ...]] = (
        *("model", "optimizer", "scheduler", "handle", "batches", "branching"),
    )

    batches: WindowStream
    batch_size: int
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    handle: Handle
    network: Mapping[str, Any]
    total_steps: int
    branching: Branching
    clip_norm: float | None
    record: WindowsRecord
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    team: Team = ALONE

    def __post_init__(self) -> None:
        self._called = self.model

    @abstractmethod
    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean loss of a batch, by ``self._called``."""

    @abstractmethod
    def look(self, model: nn.Module) -> float:
        """What decides, of a model, on the part of the validation windows that is looked at."""

    @abstractmethod
    def measured(self, *, read_test: bool) -> Mapping[str, Any]:
        """What result.json says of the trained model; the test part is read here, once."""

    def join(self, team: Team) -> None:
        """Train on this process's part of each batch from now on."""
        self.batches.restrict_to(team.part(self.batch_size))
        self._called, self.team = team.wrapped(self.model), team
        self.branching.meter.total = team.total

    @property
    def cadence(self) -> Cadence:
        """As the configuration has it."""
        return Cadence(
            log=self.record.log_every_steps,
            evaluate=self.record.eval_every_steps,
            checkpoint=self.record.checkpoint_every_steps,
        )

    def step(self) -> Step:
        """One optimizer step; the loss before it, still on its device, and its learning rate."""
        lines = self.branching.before_first(self.steps, self.look)
        batch = self.batches.next_batch()
        with self.branching.passes():
            own = self.team.weighted(self.loss(batch), part=len(batch[0]), batch=self.batch_size)
            loss = self.team.mean(own)
            self.handle.observe(loss)
            self.optimizer.zero_grad()
            torch.autograd.backward(own)
        if self.clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.clip_norm)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.scheduler.step()
        self.steps += 1
        around = self.branching.around_cuts(self.steps, self.look)
        return Step({"loss": loss, "lr": lr}, chain(lines, around))

    def evaluate(self, folder: SeedFolder) -> Line:
        """What decides, on the validation part."""
        return {"split": "validation", self.branching.measured: self.look(self.model)}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {**{p: getattr(self, p).state_dict() for p in self.parts}, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next step is the same bit for bit."""
        for part in self.parts:
            getattr(self, part).load_state_dict(state[part])
        self.steps = int(state["steps"])

    def result(self, ending: Ending) -> dict[str, Any]:
        """What was measured, sizes, times and compute."""
        return {
            **self.measured(read_test=ending.read_test),
            **sizes_and_times(self.handle.summary(), ending.lines, total_steps=self.total_steps),
            **self.branching.fields(),
            "settings": dict(self.settings),
        }
