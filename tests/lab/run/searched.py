"""A recipe whose loss is a formula of its settings, so that a search of it takes no time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace

import torch

from lab.run import toy
from orthotrain.lab.run.config import RunConfig, Variant, positive
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.space import STORED, Aim, Number, OneOf, Part, Search
from orthotrain.lab.run.trainer import Cadence


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    min_lr: float = 0.01
    width: int = 4
    rule: str = "energy=0.5"

    def __post_init__(self):
        positive(self, "optim", "lr")
        assert self.min_lr <= self.lr


@dataclass(frozen=True)
class SearchedRun(RunConfig):
    """``slow`` is seconds per step."""

    seeds: tuple[int, ...] = (0, 1)
    device: str = "cpu"
    optim: Inner = field(default_factory=Inner)
    slow: float = 0.0


@dataclass(frozen=True)
class SearchedVariant(Variant):
    lr: float | None = None


def variants(config):
    return (
        SearchedVariant("plain", "plain", "at its own rate", lr=config.optim.lr),
        SearchedVariant(
            "after", "after", "from plain", lr=config.optim.lr, needs="plain", same_seed=True
        ),
        SearchedVariant("alike", "alike", "takes what is found for plain", lr=config.optim.lr),
    )


class Trainer(toy.ToyTrainer):
    """Least loss at the rate 0.3 and width 8; a rate above 2 is not finite."""

    cadence, device = Cadence(2, 2, 3, sizes=False), torch.device("cpu")

    def __init__(self, config, variant, seed):
        super().__init__(1.0 + seed / 10, 0.01)
        self.config, self.lr, self.name = config, variant.lr, variant.name

    def step(self):
        if file := os.environ.get("STEPS_FILE"):
            with open(file, "a", encoding="ascii") as steps:
                steps.write(f"{os.getpid()} {self.name} {self.steps}\n")
        time.sleep(self.config.slow)
        found = super().step()
        return replace(found, values={"loss": float("nan")}) if self.lr > 2 else found

    @property
    def loss(self):
        distance = (self.lr - 0.3) ** 2 + (self.config.optim.width - 8) ** 2 / 100
        return distance + self.model.weight.item() / 1000

    def evaluate(self, folder):
        return {"loss": self.loss + 1 / self.steps}

    def result(self, ending):
        return {
            "validation_loss": self.loss, "stored": self.config.optim.width, "dense": 16,
            "read_test": ending.read_test, "rule": self.config.optim.rule, "lr": self.lr,
            "min_lr": self.config.optim.min_lr,
        }  # fmt: skip


def build(config, variant, seed):
    return Trainer(config, variant, seed)


LOSS = Aim("validation_loss")
SPACE = {
    "optim.lr": Number(0.01, 1.0, log=True),
    "optim.min_lr": Number(0.1, 1.0, of="optim.lr"),
    "optim.width": Number(1, 16, whole=True),
    "optim.rule": OneOf(("energy=0.5", "energy=0.9")),
}
SEARCH = Search(
    (Part("plain", SPACE, (LOSS,), also=("alike",)), Part("after", SPACE, (LOSS, STORED))),
    trials=6,
)
EXPERIMENT = Experiment(
    "searched", "Searched", {"smoke": SearchedRun()}, variants, "lab.run.searched:build",
    search="lab.run.searched:SEARCH",
)  # fmt: skip
