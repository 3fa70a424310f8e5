"""Global covariance pooling in a ResNet on garments that look alike: a fine-grained task."""

from __future__ import annotations

from dataclasses import replace

from orthotrain.recipes.recipe import Recipe
from orthotrain.recipes.texture_gcp import CPU, FULL, SMOKE

CLOTHING_GCP = Recipe(
    name="clothing-gcp",
    title="ResNet with covariance pooling on ten classes of garments",
    scales={
        config.scale: replace(
            config, recipe="clothing-gcp", data=replace(config.data, name="clothing")
        )
        for config in (SMOKE, replace(CPU, optim=replace(CPU.optim, epochs=8)), FULL)
    },
)
