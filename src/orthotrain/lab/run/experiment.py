"""What an experiment is: all that jobs, loop, checkpoint, command line and report know of it.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orthotrain.errors import ConfigError
from orthotrain.lab.run.config import RunConfig, Scale, Variant


@dataclass(frozen=True)
class Experiment:
    """Several ways to train one thing, side by side.

    What needs torch or a figure is named as ``"module:NAME"`` and imported when it is used.

    Attributes:
        name: What the command line calls it.
        title: What a person calls it.
        config: Its settings by size of the run.
        variants: The variants of a configuration, in an order in which each finds the results it
            needs. The first is the baseline.
        build: A function ``(config, variant, seed) -> Trainer``.
        page: The declaration of its page in a report; empty for the general page.
        search: What ``orthotrain tune`` tries; empty where nothing is tuned.
    """

    name: str
    title: str
    config: Mapping[Scale, RunConfig]
    variants: Callable[[Any], Sequence[Variant]]
    build: str
    page: str = ""
    search: str = ""

    def at(self, scale: Scale) -> RunConfig:
        """The settings at a size of the run.

        Raises:
            ConfigError: There is no such size.
        """
        if scale not in self.config:
            raise ConfigError(
                f"recipe {self.name} has no scale {scale!r}; choose from {', '.join(self.config)}"
            )
        return replace(self.config[scale], recipe=self.name, scale=scale)

    def chosen(self, config: RunConfig) -> tuple[Variant, ...]:
        """The variants that ``config`` names, all when it names none.

        Raises:
            ConfigError: It names one that does not exist.
        """
        variants = self.variants(config)
        known = [variant.name for variant in variants]
        for name in config.variants:
            if name not in known:
                raise ConfigError(
                    f"variants: {name!r} is not a variant; choose from {', '.join(known)}"
                )
        return tuple(v for v in variants if not config.variants or v.name in config.variants)

    def baseline(self, config: RunConfig) -> str:
        """Name of the variant that the others are compared with."""
        return self.variants(config)[0].name
