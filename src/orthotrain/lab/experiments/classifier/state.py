"""The moving parts of one training, and all of them as one state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from orthotrain.data.batches import BatchStream
from orthotrain.data.splits import ImageData
from orthotrain.lab.experiments.classifier.build import (
    build_methods,
    build_optimizer,
    build_scheduler,
)
from orthotrain.lab.experiments.classifier.networks import build_network
from orthotrain.lab.run.config import ClassifierRun, Job
from orthotrain.lab.run.reproducibility import stream_seed
from orthotrain.methods import attach
from orthotrain.methods.handle import Handle


@dataclass
class TrainingState:
    """Model, optimizer, scheduler, methods and data stream, with the steps done so far.

    All chance of a training lies in the initial weights and in ``batches``, which has a
    generator of its own; the network draws nothing. So these parts are the whole state.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    handle: Handle
    batches: BatchStream
    total_steps: int
    step: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training part."""
        return self.batches.batches_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "handle": self.handle.state_dict(),
            "batches": self.batches.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next step is the same bit for bit."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.handle.load_state_dict(state["handle"])
        self.batches.load_state_dict(state["batches"])
        self.step = int(state["step"])


def build_training(job: Job, config: ClassifierRun, *, data: ImageData) -> TrainingState:
    """Build a training at its step 0, with its methods attached.

    Raises:
        ConfigError: Settings that do not fit each other, the data or the length of the run.
    """
    generator = torch.Generator().manual_seed(stream_seed(job.seed, "weights"))
    model = build_network(
        job, config, image_shape=data.image_shape, classes=data.classes, generator=generator
    ).to(data.train.labels.device)
    batches = BatchStream(
        data.train,
        batch_size=config.data.batch_size,
        seed=stream_seed(job.seed, "batches"),
        crop_padding=config.data.crop_padding,
        crop_area=config.data.crop_area,
        flip=config.data.flip,
    )
    total_steps = config.optim.epochs * batches.batches_per_epoch
    optimizer = build_optimizer(model, config.optim)
    scheduler = build_scheduler(optimizer, config.optim, total_steps=total_steps)
    methods = build_methods(
        job, config, steps_per_epoch=batches.batches_per_epoch, total_steps=total_steps
    )
    handle = attach(model, optimizer, *methods, total_steps=total_steps)
    return TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        handle=handle,
        batches=batches,
        total_steps=total_steps,
    )
