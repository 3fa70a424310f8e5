"""From a configuration to one training of a linear generator on Gaussian data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from orthotrain.lab.experiments.latent.config import LatentRun, LatentVariant
from orthotrain.lab.experiments.latent.linear_score import linear_scores
from orthotrain.lab.experiments.latent.sources import GaussianSource
from orthotrain.lab.experiments.latent.state import AdversarialState, build_adversarial
from orthotrain.lab.experiments.latent.trainer import AdversarialTrainer
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.reproducibility import resolve_device


def build(config: LatentRun, variant: LatentVariant, seed: int) -> AdversarialTrainer:
    """A training at its step 0, with its methods attached."""
    device = resolve_device(config.device)
    source = GaussianSource.of(config.data.image_size, device=device)
    state = build_adversarial(variant, seed, config, source=source, device=device)
    return AdversarialTrainer(config, variant, state, LinearJudge(source, seed), device)


@dataclass(frozen=True)
class LinearJudge:
    """Scores in closed form; vectors are not shown."""

    source: GaussianSource
    seed: int

    def show(self, state: AdversarialState, folder: SeedFolder) -> None:
        """Write nothing."""

    def scores(self, state: AdversarialState, folder: SeedFolder) -> dict[str, float]:
        """Scores of the generator itself: its average lags behind by more than they resolve."""
        generator: Any = state.generator
        return linear_scores(generator, self.source, seed=self.seed)

    def scores_along(self, model: Any, directions: Tensor) -> Mapping[str, float]:
        """Scores of moves along these directions."""
        return linear_scores(model, self.source, seed=self.seed, directions=directions)
