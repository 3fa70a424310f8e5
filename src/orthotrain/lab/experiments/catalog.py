"""All recipes by name."""

from __future__ import annotations

import difflib

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.latent.image_gans import (
    FACES_EIGENGAN,
    FACES_SIMPLEGAN,
    SPRITES_EIGENGAN,
    SPRITES_SIMPLEGAN,
)
from orthotrain.lab.experiments.latent.latent_linear import LATENT_LINEAR
from orthotrain.lab.experiments.lowrank.cifar10_minivit import CIFAR10_MINIVIT
from orthotrain.lab.experiments.lowrank.digits_minivit import DIGITS_MINIVIT
from orthotrain.lab.experiments.recipe import Recipe
from orthotrain.lab.experiments.spectral.cifar10_dbn import CIFAR10_DBN
from orthotrain.lab.experiments.spectral.clothing_gcp import CLOTHING_GCP
from orthotrain.lab.experiments.spectral.texture_gcp import TEXTURE_GCP
from orthotrain.lab.run.config import RunConfig, Scale

DEFAULT_RECIPE = DIGITS_MINIVIT.name
RECIPES = {
    recipe.name: recipe
    for recipe in (
        DIGITS_MINIVIT,
        CIFAR10_MINIVIT,
        CIFAR10_DBN,
        TEXTURE_GCP,
        CLOTHING_GCP,
        LATENT_LINEAR,
        SPRITES_EIGENGAN,
        SPRITES_SIMPLEGAN,
        FACES_EIGENGAN,
        FACES_SIMPLEGAN,
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        ConfigError: There is none; the message lists those that exist.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"recipe {name!r} does not exist; {hint}choose from {', '.join(RECIPES)}")
    return RECIPES[name]


def recipe_config(name: str, scale: Scale) -> RunConfig:
    """The settings of a recipe at a scale.

    Raises:
        ConfigError: No such recipe, or it does not have this scale.
    """
    recipe = find_recipe(name)
    if scale not in recipe.scales:
        raise ConfigError(
            f"recipe {name} has no scale {scale!r}; choose from {', '.join(recipe.scales)}"
        )
    return recipe.scales[scale]
