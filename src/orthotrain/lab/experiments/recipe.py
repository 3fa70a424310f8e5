"""What a recipe is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from orthotrain.lab.experiments.lowrank.config import LowRankConfig
from orthotrain.lab.run.config import RunConfig, Scale


@dataclass(frozen=True)
class TuneGrid:
    """Settings of low-rank training that ``orthotrain tune`` compares.

    Attributes:
        rules: Rank rules, such as ``energy=0.9``.
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


@dataclass(frozen=True)
class Recipe:
    """An experiment: its settings at every scale, and how its tuned settings are found.

    Attributes:
        name: What the command line calls it.
        title: What a person calls it.
        scales: Its settings by size of the run.
        grid: What ``orthotrain tune`` searches; None where nothing is tuned.
    """

    name: str
    title: str
    scales: Mapping[Scale, RunConfig]
    grid: TuneGrid | None = None


def tuned_settings(file_name: str) -> LowRankConfig:
    """Settings that ``orthotrain tune`` wrote into a file of this package."""
    text = (
        resources.files("orthotrain.lab.experiments.lowrank")
        .joinpath(file_name)
        .read_text(encoding="utf-8")
    )
    return LowRankConfig(**json.loads(text)["lowrank"])
