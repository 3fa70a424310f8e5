"""Global covariance pooling in a ResNet on garments that look alike: a fine-grained task."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.spectral.config import SpectralRun, spectral_variants
from orthotrain.lab.experiments.spectral.recipes.texture_gcp import CPU, FULL, SMOKE
from orthotrain.lab.run.config import Scale
from orthotrain.lab.run.experiment import Experiment

# Half of the training images, to take no longer than the textures.
_CPU = replace(
    CPU,
    data=replace(CPU.data, train_limit=1_500),
    optim=replace(CPU.optim, epochs=6),
)

_SCALES: Final[dict[Scale, SpectralRun]] = {"smoke": SMOKE, "cpu": _CPU, "full": FULL}


def _of_garments(config: SpectralRun) -> SpectralRun:
    return replace(config, data=replace(config.data, name="clothing"))


CLOTHING_GCP = Experiment(
    name="clothing-gcp",
    title="ResNet with covariance pooling on ten classes of garments",
    config={scale: _of_garments(config) for scale, config in _SCALES.items()},
    variants=spectral_variants,
    build="orthotrain.lab.experiments.spectral.build:build",
    page="orthotrain.lab.experiments.spectral.page:PAGE",
)
