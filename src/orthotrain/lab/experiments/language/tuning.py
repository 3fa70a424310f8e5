"""The search for learning rates: dense and each narrow network with the same grid."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orthotrain.lab.experiments.language.config import LanguageRun, Rates
from orthotrain.lab.experiments.language.variants import (
    DENSE,
    SIZES,
    LanguageVariant,
    dense,
    narrow,
)
from orthotrain.lab.experiments.search import found_settings, search_record, searched_run
from orthotrain.lab.run.config import RunConfig
from orthotrain.lab.run.experiment import Choice


@dataclass(frozen=True)
class Tried:
    """One network at one learning rate.

    Attributes:
        network: Name of the network.
        rate: Peak learning rate.
        bits: Mean validation bits per byte over the seeds of the search.
    """

    network: str
    rate: float
    bits: float


@dataclass(frozen=True)
class RateGrid:
    """Learning rates that ``orthotrain tune`` compares, for each network by itself.

    Attributes:
        rates: Peak learning rates.
        seeds: Seeds of the search; never those of the final comparison.
    """

    rates: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def decides(self) -> frozenset[str]:
        """The learning rates from scratch."""
        return frozenset({"rates"})

    def config(self, config: RunConfig) -> RunConfig:
        """The recipe's own run, with the search's seeds.

        Raises:
            ConfigError: The search would use a seed of the final comparison.
        """
        return searched_run(config, seeds=self.seeds, baseline=_name(DENSE, self.rates[0]))

    def variants(self) -> tuple[LanguageVariant, ...]:
        """The dense network, then each narrow one, at every rate."""
        config = LanguageRun()
        networks = [dense(config), *(narrow(config, size) for size in SIZES)]
        return tuple(
            replace(
                one,
                name=_name(one.name, rate),
                title=f"{one.title}, rate {rate:g}",
                note="a rate of the grid",
                lr=rate,
            )
            for one in networks
            for rate in self.rates
        )

    def choice(
        self, config: RunConfig, results: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> Choice:
        """The rate of fewest bits on the validation part, for each network."""
        networks = [DENSE, *(f"narrow-{size}" for size in SIZES)]
        tried = {
            network: [self._tried(network, rate, results) for rate in self.rates]
            for network in networks
        }
        best = {network: min(some, key=lambda one: one.bits) for network, some in tried.items()}
        edges = [network for network, one in best.items() if self._at_edge(one.rate)]
        rates = {network.replace("-", "_"): one.rate for network, one in best.items()}
        record = search_record(
            config,
            criterion="fewest validation bits per byte, each network by itself",
            outcomes=[asdict(one) for some in tried.values() for one in some],
            chosen=rates,
            at_the_edge=edges,
        )
        source = (
            f"orthotrain tune {config.recipe} --scale {config.scale}: the best of "
            f"{', '.join(f'{rate:g}' for rate in self.rates)} for each network, seeds "
            f"{', '.join(map(str, config.seeds))}"
        )
        if edges:
            source += f"; at the edge of the grid for {', '.join(edges)}"
        chosen = ", ".join(f"{network} {one.rate:g}" for network, one in best.items())
        kept = {"source": source, "rates": rates}
        return Choice(chosen, record, kept, self._table(tried, best, edges))

    def _tried(
        self, network: str, rate: float, results: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> Tried:
        ended = results[_name(network, rate)]
        return Tried(network, rate, statistics.fmean(one["validation_bits"] for one in ended))

    def _at_edge(self, rate: float) -> bool:
        return rate in (min(self.rates), max(self.rates))

    def _table(
        self,
        tried: Mapping[str, Sequence[Tried]],
        best: Mapping[str, Tried],
        edges: Sequence[str],
    ) -> str:
        lines = ["  network    rate       validation bits"]
        lines += [
            f"{'>' if one is best[network] else ' '} {network:9}  {one.rate:<9g}  {one.bits:.3f}"
            for network, some in tried.items()
            for one in some
        ]
        if edges:
            lines.append(
                f"the best rate of {', '.join(edges)} lies at the edge of the grid: a better one "
                "may lie outside; add rates there"
            )
        return "\n".join(lines)


def _name(network: str, rate: float) -> str:
    return f"{network}-lr-{rate:g}"


def found_rates(file_name: str) -> Rates:
    """The learning rates that ``orthotrain tune`` wrote into a file beside the recipes."""
    return Rates(**found_settings("language", file_name)["rates"])
