"""Global covariance pooling in a ResNet on garments that look alike: a fine-grained task."""

from __future__ import annotations

from dataclasses import replace

from orthotrain.lab.experiments.recipe import Recipe
from orthotrain.lab.experiments.spectral.texture_gcp import CPU, FULL, SMOKE

# Half of the training images, to take no longer than the textures.
_CPU = replace(
    CPU,
    data=replace(CPU.data, train_limit=1_500),
    optim=replace(CPU.optim, epochs=6),
)

CLOTHING_GCP = Recipe(
    name="clothing-gcp",
    title="ResNet with covariance pooling on ten classes of garments",
    scales={
        config.scale: replace(
            config, recipe="clothing-gcp", data=replace(config.data, name="clothing")
        )
        for config in (SMOKE, _CPU, FULL)
    },
)
