"""The search behind a recipe's tuned settings: a small grid, judged on the validation part."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from typing import Any

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.lowrank.config import DENSE, LowRankConfig, LowRankVariant
from orthotrain.lab.named import named
from orthotrain.lab.run.config import RunConfig
from orthotrain.lab.run.experiment import Experiment


@dataclass(frozen=True)
class TuneGrid:
    """Settings of low-rank training that ``orthotrain tune`` compares.

    Attributes:
        rules: Pairs of a setting that decides the rank and its value.
        delay_fractions: Dense steps before the switch over all steps.
        seeds: Seeds of the search; never those of the final comparison.
        max_accuracy_loss: How far below dense training's mean validation accuracy of the same
            seeds a setting may lie; of those that remain the smallest stored size wins.
        base: What all settings of the grid share.
    """

    rules: tuple[str, ...]
    delay_fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    max_accuracy_loss: float
    base: LowRankConfig = field(default_factory=LowRankConfig)


def tuned_settings(file_name: str) -> LowRankConfig:
    """Settings that ``orthotrain tune`` wrote into a file beside the recipes."""
    folder = resources.files("orthotrain.lab.experiments.lowrank.recipes")
    text = folder.joinpath(file_name).read_text(encoding="utf-8")
    return LowRankConfig(**json.loads(text)["lowrank"])


@dataclass(frozen=True)
class Outcome:
    """What a setting reached, over the seeds of the search.

    Attributes:
        name: Name of the variant.
        accuracy: Mean validation accuracy, a fraction.
        accuracy_std: Its sample standard deviation, 0 for one seed.
        stored: Mean share of the dense network's numbers that is stored.
        trainable: Mean share that is trained.
    """

    name: str
    accuracy: float
    accuracy_std: float
    stored: float
    trainable: float


def grid_variants(grid: TuneGrid) -> tuple[LowRankVariant, ...]:
    """Dense training as the yardstick, then every rule with every delay."""
    dense = LowRankVariant(DENSE, "dense", "yardstick of the search")
    return (
        dense,
        *(
            LowRankVariant(
                f"{rule.replace('=', '-')}-delay-{delay:.2f}",
                f"{rule.replace('=', ' ')}, delay {100 * delay:.0f} %",
                "a setting of the grid",
                lowrank=replace(grid.base, delay_fraction=delay, rank=rule),
            )
            for rule in grid.rules
            for delay in grid.delay_fractions
        ),
    )


def grid_of(recipe: Experiment) -> TuneGrid:
    """The grid of a recipe.

    Raises:
        ConfigError: Nothing is tuned in this recipe.
    """
    if not recipe.search:
        raise ConfigError(
            f"tune: {recipe.name} has no settings to search for; its settings are those of the "
            "papers or stated in the recipe"
        )
    grid: TuneGrid = named(recipe.search)
    return grid


def tuning_config(recipe: Experiment, config: RunConfig) -> RunConfig:
    """The run of the search: the recipe's own, with the search's seeds.

    Raises:
        ConfigError: Nothing is tuned in this recipe, or the search would use a seed of the final
            comparison.
    """
    grid = grid_of(recipe)
    shared = set(grid.seeds) & set(config.seeds)
    if shared:
        raise ConfigError(f"tune: seeds {sorted(shared)} belong to the final comparison")
    return replace(config, seeds=grid.seeds, variants=(DENSE,))


def outcome(name: str, results: Sequence[Mapping[str, Any]]) -> Outcome:
    """Mean and spread over seeds.

    Args:
        name: Name of the variant.
        results: Contents of result.json, one per seed, at least one.
    """
    accuracies = [result["validation_accuracy"] for result in results]
    return Outcome(
        name=name,
        accuracy=statistics.fmean(accuracies),
        accuracy_std=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        stored=statistics.fmean(result["stored"] / result["dense"] for result in results),
        trainable=statistics.fmean(result["trainable"] / result["dense"] for result in results),
    )


def choose(outcomes: Sequence[Outcome], *, dense: Outcome, max_accuracy_loss: float) -> Outcome:
    """The smallest stored size within reach of dense training's accuracy.

    Where no setting is within ``max_accuracy_loss``, the most accurate one.

    Args:
        outcomes: All settings of the grid, at least one.
        dense: Dense training with the same seeds.
        max_accuracy_loss: Largest accepted loss of mean accuracy, a fraction.
    """
    close = [o for o in outcomes if o.accuracy >= dense.accuracy - max_accuracy_loss]
    if close:
        return min(close, key=lambda o: (o.stored, -o.accuracy))
    return max(outcomes, key=lambda o: (o.accuracy, -o.stored))


def search_record(
    recipe: Experiment,
    config: RunConfig,
    *,
    dense: Outcome,
    outcomes: Sequence[Outcome],
    chosen: Outcome,
) -> dict[str, Any]:
    """Content of tune.json: every setting that was tried, with what it reached."""
    return {
        "schema": 1,
        "recipe": recipe.name,
        "scale": config.scale,
        "seeds": list(config.seeds),
        "criterion": (
            "smallest stored size whose mean validation accuracy is at most "
            f"{grid_of(recipe).max_accuracy_loss:g} below dense training's"
        ),
        "dense": asdict(dense),
        "outcomes": [asdict(o) for o in outcomes],
        "chosen": chosen.name,
    }


def settings_record(
    settings: LowRankConfig,
    *,
    recipe: Experiment,
    config: RunConfig,
    chosen: Outcome,
    dense: Outcome,
) -> dict[str, Any]:
    """Content of the settings file that a recipe reads, with where it comes from."""
    return {
        "source": (
            f"orthotrain tune {recipe.name} --scale {config.scale}: {chosen.name}, validation "
            f"{100 * chosen.accuracy:.2f} % at {100 * chosen.stored:.1f} % stored against "
            f"{100 * dense.accuracy:.2f} % dense, seeds {', '.join(map(str, config.seeds))}"
        ),
        "lowrank": asdict(settings),
    }
