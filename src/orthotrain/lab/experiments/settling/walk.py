"""How far training moves each parameter per step, and a walk that goes as far at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from orthotrain.errors import ConfigError
from orthotrain.lab.run.record import SeedFolder, read_metrics
from orthotrain.methods.protocol import Bound, Method, Phase, Run

_NAME: Final = "step_norms"
#: Frobenius norm of the step of each parameter by name, for one step.
Norms = Mapping[str, float]


class _BesideStep(Bound):
    """Holds every parameter as it was before the step."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.before: dict[str, Tensor] = {}

    def before_step(self) -> None:
        self.before = {name: p.detach().clone() for name, p in self.run.model.named_parameters()}


@dataclass(frozen=True)
class StepNorms(Method):
    """Record per step how far each parameter moved, in Frobenius norm, by name; change nothing."""

    phase: ClassVar[Phase] = Phase.WATCH
    name: ClassVar[str] = _NAME

    def bind(self, run: Run) -> Bound:
        """At work on a run."""
        return _Measured(run)


class _Measured(_BesideStep):
    @torch.no_grad()
    def after_step(self) -> None:
        norms = {
            name: float(torch.linalg.vector_norm(p - self.before[name], dtype=torch.float64))
            for name, p in self.run.model.named_parameters()
        }
        self.run.record(method=_NAME, norms=norms)


def norms_of(folder: SeedFolder) -> list[Norms]:
    """What :class:`StepNorms` recorded in a finished training, one entry per step."""
    return [line["norms"] for line in read_metrics(folder.metrics) if line["kind"] == _NAME]


@dataclass(frozen=True)
class RandomWalk(Method):
    """Put a random step in the place of the optimizer's, of given length.

    The direction of each parameter is uniform on the sphere. It depends on ``seed`` and on the
    number of the step alone, so a walk that is resumed goes the same way.

    Attributes:
        norms: How far each parameter goes, one entry per step.
        seed: Of the directions.
    """

    norms: Sequence[Norms]
    seed: int

    phase: ClassVar[Phase] = Phase.UPDATE
    name: ClassVar[str] = "random_walk"

    def bind(self, run: Run) -> Bound:
        """At work on a run.

        Raises:
            ConfigError: The norms are of a run of another length or of another network.
        """
        names = [name for name, _ in run.model.named_parameters()]
        given = self.norms[0] if self.norms else {}
        if len(self.norms) != run.total_steps or [*given] != names:
            raise ConfigError(
                f"RandomWalk: the training recorded {len(self.norms)} steps of {len(given)} "
                f"parameters, this run has {run.total_steps} steps of {len(names)}; take the "
                "record of a training with the same settings"
            )
        return _Walking(self, run)


class _Walking(_BesideStep):
    def __init__(self, method: RandomWalk, run: Run) -> None:
        super().__init__(run)
        self._method = method

    @torch.no_grad()
    def after_step(self) -> None:
        norms = self._method.norms[self.run.step - 1]
        random = torch.Generator().manual_seed(self._method.seed + self.run.step)
        for name, parameter in self.run.model.named_parameters():
            way = torch.randn(parameter.shape, generator=random).to(parameter)
            length = norms[name] / torch.linalg.vector_norm(way)
            parameter.copy_(self.before[name] + length * way)
