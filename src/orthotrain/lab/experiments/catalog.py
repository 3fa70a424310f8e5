"""All experiments by name: those of this package, of other packages, and of a user's own file.

An experiment is found where it is written: any module of a package
``orthotrain.lab.experiments.FAMILY.recipes``, an entry point of the group
``orthotrain.experiments``, or ``module:NAME``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules

from orthotrain._names import did_you_mean
from orthotrain.errors import ConfigError
from orthotrain.lab.named import named
from orthotrain.lab.run.config import RunConfig, Scale
from orthotrain.lab.run.experiment import Experiment

DEFAULT_RECIPE = "stdlib-gpt"
ENTRY_POINTS = "orthotrain.experiments"
_HERE = "orthotrain.lab.experiments"


@cache
def _built_in() -> dict[str, Experiment]:
    found = {one.name: one for module in _recipe_modules() for one in _experiments_in(module)}
    return {name: found[name] for name in sorted(found, key=lambda name: name != DEFAULT_RECIPE)}


def _recipe_modules() -> Iterator[str]:
    root = Path(__file__).parent
    for family in iter_modules([str(root)]):
        recipes = root / family.name / "recipes"
        for module in iter_modules([str(recipes)]):
            yield f"{_HERE}.{family.name}.recipes.{module.name}"


def _experiments_in(module: str) -> Iterator[Experiment]:
    values = vars(import_module(module)).values()
    return (value for value in values if isinstance(value, Experiment))


def _installed() -> dict[str, str]:
    """What other packages offer, as ``module:NAME``; imported when it is chosen."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def recipe_names() -> tuple[str, ...]:
    """The names that ``orthotrain train`` takes, without those of a user's own files."""
    return tuple({**_built_in(), **_installed()})


def find_recipe(name: str) -> Experiment:
    """The experiment called ``name``, or the one at ``module:NAME``.

    Raises:
        ConfigError: There is none; the message lists those that exist.
    """
    if name in _built_in():
        return _built_in()[name]
    reference = _installed().get(name, name)
    if ":" not in reference:
        names = recipe_names()
        raise ConfigError(
            f"recipe {name!r} does not exist; {did_you_mean(name, names)}choose from "
            f"{', '.join(names)}, or name one of your own as module:NAME"
        )
    found = named(reference)
    if not isinstance(found, Experiment):
        raise ConfigError(f"recipe {name} is a {type(found).__name__}; need an Experiment")
    return found


def recipe_config(name: str, scale: Scale) -> RunConfig:
    """The settings of an experiment at a scale; their ``recipe`` finds it again.

    Raises:
        ConfigError: No such experiment, or it does not have this scale.
    """
    return replace(find_recipe(name).at(scale), recipe=name)
