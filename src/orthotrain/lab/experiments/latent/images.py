"""From a configuration to one training of a generator of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from orthotrain.disentangle import Evaluation
from orthotrain.lab.experiments.latent.config import LatentRun, LatentVariant
from orthotrain.lab.experiments.latent.image_data import build_images, build_sprites, image_source
from orthotrain.lab.experiments.latent.image_score import BUDGETS, ImageGenerator, image_scores
from orthotrain.lab.experiments.latent.samples import write_samples
from orthotrain.lab.experiments.latent.state import (
    AdversarialState,
    averaged,
    build_adversarial,
)
from orthotrain.lab.experiments.latent.trainer import AdversarialTrainer
from orthotrain.lab.experiments.latent.traversal_frames import write_traversals
from orthotrain.lab.run.record import SeedFolder, write_json
from orthotrain.lab.run.reproducibility import resolve_device


def build(config: LatentRun, variant: LatentVariant, seed: int) -> AdversarialTrainer:
    """A training at its step 0, with its methods attached.

    Raises:
        DataError: Local data, or a package that images need, is missing.
    """
    device = resolve_device(config.device)
    source = image_source(config.data, device=device)
    state = build_adversarial(variant, seed, config, source=source, device=device)
    return AdversarialTrainer(config, variant, state, ImageJudge(config, seed), device)


@dataclass(frozen=True)
class ImageJudge:
    """Samples, traversals and scores of the averaged generator."""

    config: LatentRun
    seed: int

    def show(self, state: AdversarialState, folder: SeedFolder) -> None:
        """Write a grid of samples."""
        write_samples(state, folder.path / "samples", seed=self.seed)

    def scores(self, state: AdversarialState, folder: SeedFolder) -> dict[str, float]:
        """The few that variants are compared in; all of them go into evaluation.json."""
        model: Any = averaged(state)
        scores, evaluation = self._scored(model)
        write_json(folder.path / "evaluation.json", evaluation.to_dict())
        write_traversals(model, folder.path / "traversals.npz", seed=self.seed)
        return scores

    def scores_along(self, model: Any, directions: Tensor) -> Mapping[str, float]:
        """Scores of moves along these directions."""
        return self._scored(model, directions)[0]

    def _scored(
        self, model: ImageGenerator, directions: Tensor | None = None
    ) -> tuple[dict[str, float], Evaluation]:
        data = self.config.data
        return image_scores(
            model,
            build_images(data, part="test"),
            sprites=build_sprites(data),
            budget=BUDGETS[self.config.scale],
            seed=self.seed,
            directions=directions,
        )
