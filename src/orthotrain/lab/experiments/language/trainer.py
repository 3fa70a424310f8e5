"""Training a language model on windows of a text, with or without a teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from orthotrain.data.stdlib_text import TextData
from orthotrain.data.windows import WindowStream, even_starts, windows_at
from orthotrain.lab.experiments.branches.branching import Branching
from orthotrain.lab.experiments.language.config import LanguageRun
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.sizes import sizes_and_times
from orthotrain.lab.run.team import ALONE, Team
from orthotrain.lab.run.trainer import Cadence, Ending, Line, Step
from orthotrain.methods.handle import Handle

# Evaluation keeps no activations, so a batch only has to fit the memory.
_EVALUATION_BATCH = 256
# What a state consists of, in the order in which it is loaded.
_PARTS = ("model", "optimizer", "scheduler", "handle", "batches", "branching")


@dataclass
class LanguageTrainer:
    """Model, optimizer, scheduler, methods and batches, with the steps done so far.

    Attributes:
        config: The run.
        data: Its text, on the device that trains.
        batches: Windows of the training part.
        model: Network, on that device.
        optimizer: Its optimizer.
        scheduler: Steps once per optimizer step.
        handle: The attached methods.
        network: What rebuilds the network from a checkpoint.
        total_steps: Optimizer steps of the whole training.
        branching: Its teacher, its operations and its looks at cuts.
        settings: What result.json says about the training.
        steps: Optimizer steps done.
        team: The processes that share each batch.
    """

    config: LanguageRun
    data: TextData
    batches: WindowStream
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    handle: Handle
    network: Mapping[str, Any]
    total_steps: int
    branching: Branching
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    team: Team = ALONE

    def __post_init__(self) -> None:
        self._called = self.model

    def join(self, team: Team) -> None:
        """Train on this process's part of each batch from now on."""
        self.batches.restrict_to(team.part(self.config.data.batch_size))
        self._called, self.team = team.wrapped(self.model), team
        self.branching.meter.total = team.total

    @property
    def cadence(self) -> Cadence:
        """As the configuration has it."""
        record = self.config.record
        return Cadence(
            log=record.log_every_steps,
            evaluate=record.eval_every_steps,
            checkpoint=record.checkpoint_every_steps,
        )

    @property
    def device(self) -> torch.device:
        """Where the text is."""
        return self.data.train.device

    @property
    def data_fingerprint(self) -> str:
        """Of names and contents of its files."""
        return self.data.sha256

    def step(self) -> Step:
        """One optimizer step; the loss before it, still on its device, and its learning rate."""
        clip_norm = self.config.optim.clip_norm
        lines = self.branching.before_first(self.steps, self._look)
        read, told = self.batches.next_batch()
        with self.branching.passes():
            own = self.team.weighted(
                self._loss(read, told), part=len(told), batch=self.config.data.batch_size
            )
            loss = self.team.mean(own)
            self.handle.observe(loss)
            self.optimizer.zero_grad()
            torch.autograd.backward(own)
        if clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), clip_norm)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.scheduler.step()
        self.steps += 1
        around = self.branching.around_cuts(self.steps, self._look)
        return Step({"loss": loss, "lr": lr}, chain(lines, around))

    def _loss(self, read: Tensor, told: Tensor) -> Tensor:
        half = self.config.precision == "bfloat16"
        with torch.autocast(read.device.type, torch.bfloat16, enabled=half):
            scores = self._called(read)
            taught = self.branching.taught(read)
        scores = scores.flatten(0, 1).to(torch.promote_types(scores.dtype, torch.float32))
        loss = F.cross_entropy(scores, told.flatten())
        taught = None if taught is None else taught.flatten(0, 1)
        return self.branching.loss(loss, scores, taught)

    def _look(self, model: nn.Module) -> float:
        return self._bits(model, self.data.validation, self.config.record.eval_windows)

    def _bits(self, model: nn.Module, text: Tensor, count: int) -> float:
        return bits_per_byte(
            model, text.to(self.device), count=count, length=self.config.model.context
        )

    def evaluate(self, folder: SeedFolder) -> Line:
        """Bits per byte of the validation part."""
        return {"split": "validation", "bits": self._look(self.model)}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        parts = {part: getattr(self, part).state_dict() for part in _PARTS}
        return {**parts, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next step is the same bit for bit."""
        for part in _PARTS:
            getattr(self, part).load_state_dict(state[part])
        self.steps = int(state["steps"])

    def result(self, ending: Ending) -> dict[str, Any]:
        """Bits per byte, sizes, times and compute; the test part is read here, once."""
        count = self.config.record.final_windows
        return {
            "validation_bits": self._bits(self.model, self.data.validation, count),
            "test_bits": self._bits(self.model, self.data.read_test(), count)
            if ending.read_test
            else None,
            **sizes_and_times(self.handle.summary(), ending.lines, total_steps=self.total_steps),
            **self.branching.fields(),
            "data_sha256": self.data.sha256,
            "data": {part: vars(size) for part, size in self.data.sizes.items()},
            "settings": dict(self.settings),
        }


def window_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in nats of windows: what a model read and was to tell."""
    read, told = batch
    return F.cross_entropy(model(read).flatten(0, 1), told.flatten())


@torch.no_grad()
def bits_per_byte(model: nn.Module, text: Tensor, *, count: int, length: int) -> float:
    """Mean of -log2 of what ``model`` gives each next byte, over windows spread over a text.

    Args:
        model: Scores of ``(batch, length)`` bytes; looked at in evaluation mode, in float32.
        text: ``(n,)`` uint8, on the model's device.
        count: Windows.
        length: Bytes that a window tells.
    """
    training = model.training
    model.eval()
    starts = even_starts(text, count=count, length=length)
    loss = torch.zeros((), dtype=torch.float64, device=text.device)
    for first in range(0, len(starts), _EVALUATION_BATCH):
        some = starts[first : first + _EVALUATION_BATCH]
        read, told = windows_at(text, some, length=length)
        scores: Tensor = model(read)
        loss += F.cross_entropy(scores.flatten(0, 1), told.flatten(), reduction="sum").double()
    model.train(training)
    return loss.item() / (len(starts) * length * math.log(2))
