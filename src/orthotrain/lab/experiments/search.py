"""What every search for settings does: seeds of its own, and a file beside the recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from orthotrain.errors import ConfigError
from orthotrain.lab.run.config import RunConfig


def searched_run(config: RunConfig, *, seeds: Sequence[int], baseline: str) -> RunConfig:
    """The recipe's own run, with the search's seeds.

    Raises:
        ConfigError: The search would use a seed of the final comparison.
    """
    if shared := set(seeds) & set(config.seeds):
        raise ConfigError(f"tune: seeds {sorted(shared)} belong to the final comparison")
    return replace(config, seeds=tuple(seeds), variants=(baseline,))


def searched_by(config: RunConfig) -> str:
    """The command of a search and its seeds."""
    seeds = ", ".join(map(str, config.seeds))
    return f"orthotrain tune {config.recipe} --scale {config.scale}, seeds {seeds}"


def search_record(config: RunConfig, *, criterion: str, **fields: Any) -> dict[str, Any]:
    """Content of tune.json: what was searched and how it was chosen, then ``fields``."""
    return {
        "schema": 1,
        "recipe": config.recipe,
        "scale": config.scale,
        "seeds": list(config.seeds),
        "criterion": criterion,
        **fields,
    }


def found_settings(family: str, file_name: str) -> dict[str, Any]:
    """What ``orthotrain tune`` wrote into a file beside the recipes of a family."""
    folder = resources.files(f"orthotrain.lab.experiments.{family}.recipes")
    settings: dict[str, Any] = json.loads(folder.joinpath(file_name).read_text(encoding="utf-8"))
    return settings
