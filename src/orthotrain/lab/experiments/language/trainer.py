"""Training a language model on windows of a text, with or without a teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from orthotrain.data.stdlib_text import TextData
from orthotrain.data.windows import WindowStream, even_starts, windows_at
from orthotrain.lab.experiments.language.compute import counting
from orthotrain.lab.experiments.language.config import LanguageRun
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.sizes import sizes_and_times
from orthotrain.lab.run.trainer import Cadence, Ending, Line, Step
from orthotrain.lowrank import teacher_loss
from orthotrain.lowrank.schedule import Schedule
from orthotrain.methods.handle import Handle

# Evaluation keeps no activations, so a batch only has to fit the memory.
_EVALUATION_BATCH = 256
# What a state consists of: parts in the order in which they are loaded, then plain values.
_PARTS = ("model", "optimizer", "scheduler", "handle", "batches")
_VALUES = ("steps", "operations", "operations_per_step", "numbers", "bits_before")


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
        teacher: A finished model to learn from, in evaluation mode.
        cuts: When the model is cut; None where it never is.
        compute_before: Operations of the training that this one starts from or learns from.
        settings: What result.json says about the training.
        steps: Optimizer steps done.
        operations: Floating-point operations of these steps, the teacher's included.
        operations_per_step: The same of one step; None where the next step is counted.
        numbers: In the parameters that are trained: another number is another structure.
        bits_before: Bits per byte just before the last cut; None before the first.
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
    teacher: nn.Module | None = None
    cuts: Schedule | None = None
    compute_before: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    operations: int = 0
    operations_per_step: int | None = None
    numbers: int = 0
    bits_before: float | None = None

    def __post_init__(self) -> None:
        self.numbers = self._present_numbers()

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

    def step(self) -> Step:
        """One optimizer step; the loss before it, still on its device, and its learning rate."""
        clip_norm = self.config.optim.clip_norm
        read, told = self.batches.next_batch()
        counter = counting() if self.operations_per_step is None else nullcontext()
        with counter:
            loss = self._loss(read, told)
            self.handle.observe(loss.detach())
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
        if not isinstance(counter, nullcontext):
            self.operations_per_step = counter.get_total_flops()
        if clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), clip_norm)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.scheduler.step()
        self.steps += 1
        self.operations += self.operations_per_step or 0
        before, self.numbers = self.numbers, self._present_numbers()
        changed = before != self.numbers
        if changed:
            self.operations_per_step = None
        return Step({"loss": loss.detach(), "lr": lr}, self._around_cuts(changed=changed))

    def _loss(self, read: Tensor, told: Tensor) -> Tensor:
        half = self.config.precision == "bfloat16"
        with torch.autocast(read.device.type, torch.bfloat16, enabled=half):
            scores = self.model(read)
            with torch.no_grad():
                taught = None if self.teacher is None else self.teacher(read)
        scores = scores.flatten(0, 1).float()
        loss = F.cross_entropy(scores, told.flatten())
        if taught is None:
            return loss
        taught = taught.flatten(0, 1)
        return teacher_loss(scores, taught, loss, weight=self.config.branch.teacher_share)

    def _around_cuts(self, *, changed: bool) -> Iterator[Line]:
        """Bits right before and right after a cut; runs when the time of the step is taken."""
        if changed:
            yield {"kind": "cut", "bits": self._look(), "bits_before": self.bits_before}
        if self.cuts is not None and self.cuts.due(self.steps + 1):
            self.bits_before = self._look()

    def _present_numbers(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def _look(self) -> float:
        return self._bits(self.data.validation, self.config.record.eval_windows)

    def _bits(self, text: Tensor, count: int) -> float:
        return bits_per_byte(
            self.model, text.to(self.device), count=count, length=self.config.model.context
        )

    def evaluate(self, folder: SeedFolder) -> Line:
        """Bits per byte of the validation part."""
        return {"split": "validation", "bits": self._look()}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        parts = {part: getattr(self, part).state_dict() for part in _PARTS}
        return {**parts, "values": {name: getattr(self, name) for name in _VALUES}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next step is the same bit for bit."""
        for part in _PARTS:
            getattr(self, part).load_state_dict(state[part])
        for name in _VALUES:
            setattr(self, name, state["values"][name])

    def result(self, ending: Ending) -> dict[str, Any]:
        """Bits per byte, sizes, times and compute; the test part is read here, once."""
        count = self.config.record.final_windows
        return {
            "validation_bits": self._bits(self.data.validation, count),
            "test_bits": self._bits(self.data.read_test(), count) if ending.read_test else None,
            **sizes_and_times(self.handle.summary(), ending.lines, total_steps=self.total_steps),
            "compute": self.operations,
            "compute_before": self.compute_before,
            "data_sha256": self.data.sha256,
            "data": {part: vars(size) for part, size in self.data.sizes.items()},
            "settings": dict(self.settings),
        }


@torch.no_grad()
def bits_per_byte(model: nn.Module, text: Tensor, *, count: int, length: int) -> float:
    """Mean of -log2 of what ``model`` gives each next byte, over windows spread over a text.

    Args:
        model: Scores of ``(batch, length)`` bytes; looked at in evaluation mode, in float32.
        text: ``(n,)`` uint8, on the model's device.
        count: Windows.
        length: Bytes that a window tells.
    """
    model.eval()
    starts = even_starts(text, count=count, length=length)
    loss = torch.zeros((), dtype=torch.float64, device=text.device)
    for first in range(0, len(starts), _EVALUATION_BATCH):
        some = starts[first : first + _EVALUATION_BATCH]
        read, told = windows_at(text, some, length=length)
        scores: Tensor = model(read)
        loss += F.cross_entropy(scores.flatten(0, 1), told.flatten(), reduction="sum").double()
    model.train()
    return loss.item() / (len(starts) * length * math.log(2))
