"""Training a classifier, whatever its network: one such trainer for every family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from orthotrain.data.batches import BatchStream, to_float
from orthotrain.data.splits import ImageData, Split
from orthotrain.lab.experiments.branches.branching import Branching
from orthotrain.lab.experiments.classifier.config import ClassifierRun
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.resume import fingerprint
from orthotrain.lab.run.sizes import sizes_and_times
from orthotrain.lab.run.team import ALONE, Team
from orthotrain.lab.run.trainer import Cadence, Ending, Line, Step
from orthotrain.methods.handle import Handle

# Evaluation keeps no activations, so a batch only has to fit the memory: this many images of 32
# by 32 pixels, fewer larger ones.
_EVALUATION_BATCH = 1000
_EVALUATION_PIXELS = _EVALUATION_BATCH * 32 * 32
# What a state consists of, in the order in which it is loaded.
_STATE = ("model", "optimizer", "scheduler", "handle", "batches")

#: Fields of the result that only one family has, from its sizes and times and the steps here.
MoreFields = Callable[[Mapping[str, Any], int], Mapping[str, Any]]


@dataclass
class ClassifierTrainer:
    """Model, optimizer, scheduler, methods and batches, with the steps done so far.

    All chance of a training lies in the initial weights and in ``batches``, which has a
    generator of its own; the network draws nothing. So these parts are the whole state.

    Attributes:
        config: The run.
        data: Images, on the device that trains.
        batches: Its training part.
        model: Network, on that device.
        optimizer: Its optimizer.
        scheduler: Steps once per optimizer step.
        handle: The attached methods.
        network: What rebuilds the network from a checkpoint.
        settings: What result.json says about the training.
        more_fields: What it says besides, at the end.
        length: Optimizer steps of the whole training; None for the epochs of the configuration.
        branching: Its teacher, its operations and its looks at cuts, where branches are compared.
        steps: Optimizer steps done.
        team: The processes that share each batch.
    """

    config: ClassifierRun
    data: ImageData
    batches: BatchStream
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    handle: Handle
    network: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    more_fields: MoreFields = lambda sizes, steps_here: {}
    length: int | None = None
    branching: Branching | None = None
    steps: int = 0
    team: Team = ALONE

    def __post_init__(self) -> None:
        self._called = self.model

    def join(self, team: Team) -> None:
        """Train on this process's part of each batch from now on."""
        self.batches.restrict_to(team.part(self.config.data.batch_size))
        self._called, self.team = team.wrapped(self.model), team
        if self.branching is not None:
            self.branching.meter.total = team.total

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self._dense_steps if self.length is None else self.length

    @property
    def _dense_steps(self) -> int:
        return self.config.optim.epochs * self.batches.batches_per_epoch

    @property
    def cadence(self) -> Cadence:
        """Epochs of the configuration in steps; a shorter training is looked at as often."""
        record, epoch = self.config.record, self.batches.batches_per_epoch
        share = min(1.0, self.total_steps / self._dense_steps)
        return Cadence(
            log=record.log_every_steps,
            evaluate=max(1, round(share * record.eval_every_epochs * epoch)),
            checkpoint=record.checkpoint_every_epochs * epoch,
            epoch=epoch,
        )

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.data.train.labels.device

    @property
    def data_fingerprint(self) -> str:
        """Of images and labels that it trains on and is looked at with."""
        parts = (self.data.train, self.data.validation)
        return fingerprint(*(array for part in parts for array in (part.images, part.labels)))

    def step(self) -> Step:
        """One optimizer step; the loss before it, still on its device, and its learning rate."""
        optim = self.config.optim
        branching = self.branching
        lines = [] if branching is None else branching.before_first(self.steps, self._look)
        images, labels = self.batches.next_batch()
        with nullcontext() if branching is None else branching.passes():
            own = self.team.weighted(
                self._loss(images, labels), part=len(labels), batch=self.config.data.batch_size
            )
            loss = self.team.mean(own)
            self.handle.observe(loss)
            self.optimizer.zero_grad()
            torch.autograd.backward(own)
        if optim.clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), optim.clip_norm)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.scheduler.step()
        self.steps += 1
        around = () if branching is None else branching.around_cuts(self.steps, self._look)
        return Step({"loss": loss, "lr": lr}, chain(lines, around))

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        branching, half = self.branching, self.config.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            scores = self._called(images)
            taught = None if branching is None else branching.taught(images)
        smoothing = self.config.optim.label_smoothing
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        loss = F.cross_entropy(scores, labels, label_smoothing=smoothing)
        return loss if branching is None else branching.loss(loss, scores, taught)

    def _look(self, model: nn.Module) -> float:
        return evaluate(model, self.data.validation).accuracy

    def evaluate(self, folder: SeedFolder) -> Line:
        """Loss and accuracy of the validation part."""
        return {"split": "validation", **asdict(evaluate(self.model, self.data.validation))}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        parts = {part: getattr(self, part).state_dict() for part in self._parts}
        return {**parts, "step": self.steps}

    @property
    def _parts(self) -> tuple[str, ...]:
        return _STATE if self.branching is None else (*_STATE, "branching")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next step is the same bit for bit."""
        for part in self._parts:
            getattr(self, part).load_state_dict(state[part])
        self.steps = int(state["step"])

    def result(self, ending: Ending) -> dict[str, Any]:
        """Losses, accuracies, sizes and times; the test part is read here, once."""
        validation = evaluate(self.model, self.data.validation)
        test = evaluate(self.model, self.data.read_test()) if ending.read_test else None
        sizes = sizes_and_times(self.handle.summary(), ending.lines, total_steps=self.total_steps)
        return {
            "validation_accuracy": validation.accuracy,
            "validation_loss": validation.loss,
            "test_accuracy": None if test is None else test.accuracy,
            "test_loss": None if test is None else test.loss,
            **sizes,
            **({} if self.branching is None else self.branching.fields()),
            **self.more_fields(sizes, ending.steps_here),
            "settings": dict(self.settings),
        }


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy (a fraction) over a part of the data."""

    loss: float
    accuracy: float


def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor], *, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of images with their labels."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> Evaluation:
    """Loss and accuracy of ``model`` on all of ``split``, in float32, in evaluation mode."""
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    right = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    pixels = split.images.shape[-2] * split.images.shape[-1]
    size = max(1, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // pixels))
    for start in range(0, len(split), size):
        images = to_float(split.images[start : start + size])
        labels = split.labels[start : start + size]
        scores: Tensor = model(images)
        loss += F.cross_entropy(scores, labels, reduction="sum").double()
        right += (scores.argmax(dim=1) == labels).sum()
    model.train(training)
    return Evaluation(loss=loss.item() / len(split), accuracy=right.item() / len(split))
