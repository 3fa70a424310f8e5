"""Runs that tell the settling of a basis from the schedule of the learning rate.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from orthotrain.lab.experiments.classifier.config import ClassifierRun, ModelConfig, OptimConfig
from orthotrain.lab.run.config import Variant
from orthotrain.lab.run.record import SeedFolder

FALLING: Final = "falling"
CONSTANT: Final = "constant"


def walk_of(training: str) -> str:
    """Name of the random walk with the step sizes of a training."""
    return f"walk-{training}"


@dataclass(frozen=True)
class SettlingRun(ClassifierRun):
    """A mini vision transformer that nothing cuts, and random walks beside it.

    Attributes:
        model: Network.
        optim: Optimizer and schedule.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class SettlingVariant(Variant):
    """A training, or a random walk with the step sizes of one.

    Attributes:
        falls: Whether the learning rate falls after its warm-up.
        walks: Whether each step goes into a random direction.
        training: The finished training whose step sizes a walk has.
    """

    falls: bool = True
    walks: bool = False
    training: SeedFolder | None = None

    def settings(self) -> Mapping[str, object]:
        """What result.json says about it, beside the network."""
        return {"falling": self.falls, "random_walk": self.walks}

    def with_trainings(self, finished: Sequence[Path]) -> Self:
        """A walk with the step sizes of the training of its seed."""
        return replace(self, training=SeedFolder(finished[0]))


def settling_variants(config: SettlingRun) -> tuple[SettlingVariant, ...]:
    """Both schedules, then a random walk with the step sizes of each."""
    trainings = (
        SettlingVariant(FALLING, "falling rate", "warm-up, then a cosine"),
        SettlingVariant(
            CONSTANT, "constant rate", "the same, at its peak rate to the end", falls=False
        ),
    )
    walks = (
        replace(
            one,
            name=walk_of(one.name),
            title=f"random walk, steps of {one.title}",
            note="random directions; each parameter moves as far per step as in training",
            needs=one.name,
            same_seed=True,
            walks=True,
        )
        for one in trainings
    )
    return (*trainings, *walks)
