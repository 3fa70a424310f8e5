"""The search for the learning rate of each network, with the same grid for all of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orthotrain.lab.experiments.branches.variants import BranchedVariant
from orthotrain.lab.experiments.search import searched_by
from orthotrain.lab.run.config import RunConfig


@dataclass(frozen=True)
class Tried:
    """One network at one learning rate.

    Attributes:
        network: Name of the network.
        rate: Peak learning rate.
        value: Mean over the seeds of the search of what decides.
    """

    network: str
    rate: float
    value: float


@dataclass(frozen=True)
class Rates:
    """Some networks, each at every learning rate of a grid.

    Attributes:
        networks: From scratch, the dense one first.
        rates: Peak learning rates.
        field: What decides, by its name in result.json.
        less: Whether less of it is better.
        unit: Its title in the table, and how a value is shown there.
    """

    networks: tuple[BranchedVariant, ...]
    rates: tuple[float, ...]
    field: str
    less: bool
    unit: str
    scale: float = 1.0
    digits: int = 3

    def variants(self) -> tuple[BranchedVariant, ...]:
        """Every network at every rate."""
        return tuple(
            replace(
                one,
                name=name_at(one.name, rate),
                title=f"{one.title}, rate {rate:g}",
                note="a rate of the grid",
                lr=rate,
            )
            for one in self.networks
            for rate in self.rates
        )

    def found(self, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Found:
        """The best rate of each network, from the results of its variants, one per seed."""
        tried = {
            one.name: [
                Tried(one.name, rate, self.mean(results[name_at(one.name, rate)]))
                for rate in self.rates
            ]
            for one in self.networks
        }
        choose = min if self.less else max
        best = {name: choose(some, key=lambda one: one.value) for name, some in tried.items()}
        return Found(self, tried, best)

    def mean(self, ended: Sequence[Mapping[str, Any]]) -> float:
        """What decides, over the seeds of one variant."""
        return statistics.fmean(one[self.field] for one in ended)


@dataclass(frozen=True)
class Found:
    """What the rates reached.

    Attributes:
        searched: Networks and rates.
        tried: Of each network, all its rates.
        best: Of each network, the best of them.
    """

    searched: Rates
    tried: Mapping[str, Sequence[Tried]]
    best: Mapping[str, Tried]

    @property
    def rates(self) -> dict[str, float]:
        """The best rates, by names that are settings."""
        return {name.replace("-", "_"): one.rate for name, one in self.best.items()}

    @property
    def edges(self) -> list[str]:
        """Networks whose best rate lies at the edge of the grid."""
        ends = (min(self.searched.rates), max(self.searched.rates))
        return [name for name, one in self.best.items() if one.rate in ends]

    def told(self, name: str) -> dict[str, Any]:
        """What tune.json says: all that was tried, the value under this name, and the best."""
        outcomes = [
            {"network": one.network, "rate": one.rate, name: one.value}
            for some in self.tried.values()
            for one in some
        ]
        return {"outcomes": outcomes, "chosen": self.rates, "at_the_edge": self.edges}

    def source(self, config: RunConfig) -> str:
        """What a file of settings says of its origin: the search that this run was."""
        grid = ", ".join(f"{rate:g}" for rate in self.searched.rates)
        edges = f"; at the edge of the grid for {', '.join(self.edges)}" if self.edges else ""
        return f"{searched_by(config)}: the best of {grid} for each network{edges}"

    def chosen(self) -> str:
        """The best rates in a line."""
        return ", ".join(f"{name} {one.rate:g}" for name, one in self.best.items())

    def table(self) -> str:
        """All rates, the best of each network marked."""
        shown = self.searched
        width = max(len("network"), *map(len, self.tried))
        lines = [f"  {'network':{width}}  rate       {shown.unit}"]
        lines += [
            f"{'>' if one is self.best[network] else ' '} {network:{width}}  {one.rate:<9g}  "
            f"{shown.scale * one.value:.{shown.digits}f}"
            for network, some in self.tried.items()
            for one in some
        ]
        if self.edges:
            lines.append(
                f"the best rate of {', '.join(self.edges)} lies at the edge of the grid: a better "
                "one may lie outside; add rates there"
            )
        return "\n".join(lines)


def name_at(network: str, rate: float) -> str:
    """Name of a network at a rate."""
    return f"{network}-lr-{rate:g}"
