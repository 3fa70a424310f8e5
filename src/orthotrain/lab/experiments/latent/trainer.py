"""Training two players against each other: one such trainer for linear and image generators.

What differs between them, how a generator is shown and scored, is its :class:`Judge`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from orthotrain.lab.experiments.latent.build import (
    Generator,
    generator_from,
    gram_deviation,
    latent_weights,
)
from orthotrain.lab.experiments.latent.config import BASELINE, LatentRun, LatentVariant
from orthotrain.lab.experiments.latent.projected import projected, projected_directions
from orthotrain.lab.experiments.latent.state import AdversarialState
from orthotrain.lab.experiments.latent.step import adversarial_step
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.restore import network_entry
from orthotrain.lab.run.resume import fingerprint
from orthotrain.lab.run.sizes import hook_shares
from orthotrain.lab.run.trainer import Cadence, Ending, Line, Step
from orthotrain.methods.handle import Handle

# What is told of the Householder projector, which goes on with the baseline's training.
_PROJECTED: Final = (
    *("alignment", "disentanglement", "completeness", "factor_spread", "vp", "ppl"),
    *("frechet", "encoder_r2", "mig"),
)
# Samples that stand for the data they come from.
_FINGERPRINT_SAMPLES: Final = 64


class Judge(Protocol):
    """Shows and scores generators of one kind of samples."""

    def show(self, state: AdversarialState, folder: SeedFolder) -> None:
        """Write samples to look at while it trains."""

    def scores(self, state: AdversarialState, folder: SeedFolder) -> dict[str, float]:
        """What variants are compared in, at the end; a longer account goes into the folder."""

    def scores_along(self, model: Generator, directions: Tensor) -> Mapping[str, float]:
        """The same of a generator whose latent is moved along these directions."""


@dataclass
class AdversarialTrainer:
    """Two players that take a step each in turn.

    Attributes:
        config: The run.
        variant: What is done to the latent weight.
        state: Both players, and all that their next step depends on.
        judge: How the generator is shown and scored.
        device: Where they train.
    """

    config: LatentRun
    variant: LatentVariant
    state: AdversarialState
    judge: Judge
    device: torch.device

    @property
    def steps(self) -> int:
        """Steps of each player done."""
        return self.state.step

    @property
    def total_steps(self) -> int:
        """Steps of each player in the whole training."""
        return self.config.optim.steps

    @property
    def handle(self) -> Handle:
        """The methods attached to the generator."""
        return self.state.handle

    @property
    def cadence(self) -> Cadence:
        """As configured; sizes of a generator do not change."""
        record = self.config.record
        return Cadence(
            log=record.log_every_steps,
            evaluate=record.sample_every_steps,
            checkpoint=record.checkpoint_every_steps,
            sizes=False,
        )

    @property
    def data_fingerprint(self) -> str:
        """Of some samples, always the same ones."""
        random = torch.Generator().manual_seed(0)
        return fingerprint(self.state.source.batch(_FINGERPRINT_SAMPLES, generator=random))

    @property
    def network(self) -> Mapping[str, Any]:
        """The averaged generator."""
        settings = {"model": asdict(self.config.model), "shape": list(self.state.source.shape)}
        return network_entry(generator_from, settings, weights="average", prefix="module.")

    def step(self) -> Step:
        """One step of the discriminator, then one of the generator."""
        losses = adversarial_step(self.state, self.config)
        lr = self.state.optimizers[0].param_groups[0]["lr"]
        return Step({**losses, "lr": lr}, lines=self._latent_lines())

    def _latent_lines(self) -> Iterator[Line]:
        every = self.config.latent.monitor_every_steps
        if self.steps % every == 0 or self.steps == self.total_steps:
            for layer, weight in latent_weights(self.state.generator):
                deviation = gram_deviation(weight)
                yield {"kind": "latent", "layer": layer, "gram_deviation": deviation}

    def evaluate(self, folder: SeedFolder) -> Line:
        """Samples go into the folder."""
        self.judge.show(self.state, folder)
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return self.state.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next step is the same bit for bit."""
        self.state.load_state_dict(state)

    def result(self, ending: Ending) -> dict[str, Any]:
        """Scores and times; after the baseline's training also those of the projector."""
        scores = self.judge.scores(self.state, ending.folder)
        step_ms = statistics.median(
            line["step_ms"] for line in ending.lines if line["kind"] == "step"
        )
        result = {
            "scores": scores,
            "step_ms": step_ms,
            "shares": hook_shares(self.handle, steps=ending.steps_here, step_ms=step_ms),
            "trainable": sum(p.numel() for p in self.state.generator.parameters()),
            "settings": {"model": asdict(self.config.model), **self.variant.settings()},
        }
        if self.variant.name == BASELINE:
            # It goes on with this training and uses it up, without its methods.
            self.handle.detach()
            model = projected(self.state, self.config)
            found = self.judge.scores_along(model, projected_directions(model))
            scores |= {f"{name}_householder": found[name] for name in _PROJECTED if name in found}
        return result
