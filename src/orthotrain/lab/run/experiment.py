"""What an experiment is: all that jobs, loop, checkpoint, command line and report know of it.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orthotrain._names import did_you_mean
from orthotrain.errors import ConfigError
from orthotrain.lab.named import named
from orthotrain.lab.run.config import RunConfig, Scale, Variant
from orthotrain.lab.run.space import Search, own_config


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
        search: A :class:`~orthotrain.lab.run.space.Search` for ``orthotrain tune``; empty where
            nothing is tuned.
    """

    name: str
    title: str
    config: Mapping[Scale, RunConfig]
    variants: Callable[[Any], Sequence[Variant]]
    build: str
    page: str = ""
    search: str = ""

    @property
    def default_scale(self) -> Scale:
        """The size of a run where none is named: minutes, on any machine."""
        return "demo" if "demo" in self.config else "cpu"

    def at(self, scale: Scale) -> RunConfig:
        """The settings at a size of the run.

        Raises:
            ConfigError: There is no such size.
        """
        if scale not in self.config:
            raise ConfigError(
                f"recipe {self.name} has no scale {scale!r}; {did_you_mean(scale, self.config)}"
                f"choose from {', '.join(self.config)}"
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
                    f"variants: {name!r} is not a variant; {did_you_mean(name, known)}choose from "
                    f"{', '.join(known)}"
                )
        for name in config.own:
            if name not in known:
                raise ConfigError(
                    f"own: {name!r} is not a variant; {did_you_mean(name, known)}choose from "
                    f"{', '.join(known)}"
                )
        names = config.variants or known
        return tuple(self.variant(config, name) for name in known if name in names)

    def variant(self, config: RunConfig, name: str) -> Variant:
        """A variant, with the settings that ``config`` gives it of its own."""
        return next(v for v in self.variants(own_config(config, name)) if v.name == name)

    def baseline(self, config: RunConfig) -> str:
        """Name of the variant that the others are compared with."""
        return self.variants(config)[0].name

    def tuned_by(self) -> Search:
        """Its search.

        Raises:
            ConfigError: Nothing is tuned in this experiment.
        """
        if not self.search:
            raise ConfigError(
                f"tune: {self.name} has no settings to search for; its settings are those of the "
                "papers or stated in the recipe"
            )
        search: Search = named(self.search)
        return search
