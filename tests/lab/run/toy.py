"""A family of experiments of its own, with nothing but a trainer and a configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from orthotrain import attach
from orthotrain.lab.run.config import RunConfig, Variant
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.record import SeedFolder, read_json
from orthotrain.lab.run.restore import network_entry, rebuilds
from orthotrain.lab.run.trainer import Cadence, Step
from orthotrain.methods import Bound, Method, Phase


@dataclass(frozen=True)
class ToyRun(RunConfig):
    seeds: tuple[int, ...] = (0, 1)
    device: str = "cpu"
    rate: float = 0.1


@dataclass(frozen=True)
class ToyVariant(Variant):
    rate: float | None = None

    def with_trainings(self, finished):
        results = [read_json(SeedFolder(one).result) for one in finished]
        return replace(self, rate=sum(abs(one["final"]) for one in results) / 100)


def variants(config):
    return (
        ToyVariant("plain", "plain", "as it is"),
        ToyVariant("after", "after", "at the rate that the others ended with", needs="plain"),
    )


@dataclass(frozen=True)
class Watch(Method):
    """Records under a name that no table knows."""

    phase: ClassVar[Phase] = Phase.WATCH
    name: ClassVar[str] = "watch"

    def bind(self, run):
        return WatchBound(run)


class WatchBound(Bound):
    def __init__(self, run):
        self.run = run

    def after_step(self):
        self.run.record(method="watch", weight=self.run.model.weight.item())


@rebuilds
def line(*, weight=1.0):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, weight)
    return model


class ToyTrainer:
    total_steps, cadence, device = 8, Cadence(2, 4, 3, sizes=False), torch.device("cpu")

    def __init__(self, weight, rate):
        self.model, self.steps = line(weight=weight), 0
        self.network = network_entry(line, {"weight": weight})
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9)
        self.handle = attach(self.model, self.optimizer, Watch())

    def step(self):
        loss = self.model.weight.square().sum()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.steps += 1
        return Step({"loss": loss.detach(), "lr": 0.1})

    def evaluate(self, folder):
        return {"weight": self.model.weight.item()}

    def state_dict(self):
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**parts, "handle": self.handle.state_dict(), "step": self.steps}

    def load_state_dict(self, state):
        for part in ("model", "optimizer", "handle"):
            getattr(self, part).load_state_dict(state[part])
        self.steps = state["step"]

    def result(self, ending):
        return {"final": self.model.weight.item(), "lines": len(ending.lines)}


def build(config, variant, seed):
    return ToyTrainer(1.0 + seed, config.rate if variant.rate is None else variant.rate)


TOY = Experiment("toy", "Toy", {"smoke": ToyRun()}, variants, "lab.run.toy:build")
