"""What a run is made of: the same frozen dataclasses are Python config, YAML file and flags.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

from orthotrain.errors import ConfigError

Scale = Literal["smoke", "demo", "cpu", "cpu-long", "night", "full"]
Device = Literal["auto", "cpu", "cuda"]
#: More than any machine has; a system that cannot start so many ends the process.
MOST_THREADS: Final = 1024
Precision = Literal["float32", "bfloat16"]


def need(condition: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def at_least(settings: object, least: int, group: str, *names: str) -> None:
    """Raise ConfigError unless these settings of ``group`` are unset or at least ``least``."""
    for name in names:
        value = getattr(settings, name)
        need(value is None or value >= least, f"{group}.{name}={value} must be at least {least}")


def positive(settings: object, group: str, *names: str) -> None:
    """Raise ConfigError unless these settings of ``group`` are positive and finite."""
    for name in names:
        value = getattr(settings, name)
        need(math.isfinite(value) and value > 0, f"{group}.{name}={value} must be positive")


def not_negative(settings: object, group: str, *names: str) -> None:
    """Raise ConfigError unless these settings of ``group`` are zero or more, and finite."""
    for name in names:
        value = getattr(settings, name)
        need(math.isfinite(value) and value >= 0, f"{group}.{name}={value} must not be negative")


def below_one(settings: object, group: str, *names: str) -> None:
    """Raise ConfigError unless these settings of ``group`` lie in [0, 1)."""
    for name in names:
        value = getattr(settings, name)
        need(0 <= value < 1, f"{group}.{name}={value} must lie in [0, 1)")


@dataclass(frozen=True)
class Variant:
    """One way to train: a name, and what is different about it.

    Attributes:
        name: Folder name.
        title: What a report calls it.
        note: One sentence.
        needs: Name of a variant whose finished trainings this one is built from, or several.
        same_seed: Whether it is built from the training of its own seed alone, not of all seeds.
    """

    name: str
    title: str
    note: str
    needs: str | tuple[str, ...] | None = None
    same_seed: bool = False

    def described(self) -> dict[str, object]:
        """What run.json says about it."""
        return {"name": self.name, "title": self.title, "note": self.note}

    def settings(self) -> Mapping[str, object]:
        """What result.json says about it, beside the network."""
        return {}

    def with_trainings(self, finished: Sequence[Path]) -> Self:
        """The variant to build once what it ``needs`` has ended.

        Args:
            finished: Folders of the trainings that it needs, with result and last checkpoint: one
                per seed of the run, or that of its own seed, of each variant that it needs.
        """
        return self


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains.

    Attributes:
        recipe: Name of its experiment, filled in by it.
        scale: Size of the run, filled in by its experiment.
        variants: Names of the variants to train; all of the experiment when empty.
        seeds: Seeds of every variant.
        device: Where to train; auto takes a GPU when there is one.
        precision: Arithmetic of the forward pass; weights stay float32.
        threads: CPU threads of one training. Results are equal bit for bit at equal threads.
        own: Settings that a variant has of its own, by its name, then by dotted name.
    """

    recipe: str = ""
    scale: Scale = "cpu"
    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    device: Device = "auto"
    precision: Precision = "float32"
    threads: int = 1
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need(len(self.seeds) > 0, "seeds is empty; give at least one")
        for name, values in (("variants", self.variants), ("seeds", self.seeds)):
            need(len(set(values)) == len(values), f"{name}={list(values)} names one twice")
        need(min(self.seeds) >= 0, f"seeds={list(self.seeds)} must not be negative")
        need(
            1 <= self.threads <= MOST_THREADS, f"threads={self.threads} must be 1 to {MOST_THREADS}"
        )
