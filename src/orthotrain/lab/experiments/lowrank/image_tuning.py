"""The search for learning rates of image classifiers: as many trials for each as for any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orthotrain.lab.experiments.branches import rates as grid
from orthotrain.lab.experiments.branches.variants import DENSE, BranchedVariant, dense, half, narrow
from orthotrain.lab.experiments.lowrank.config import HALF, LowRankConfig
from orthotrain.lab.experiments.lowrank.image_config import AllRates, published
from orthotrain.lab.experiments.search import found_settings, search_record, searched_run
from orthotrain.lab.run.config import RunConfig
from orthotrain.lab.run.experiment import Choice


@dataclass(frozen=True)
class RateGrid:
    """Peak learning rates that ``orthotrain tune`` compares, for each network by itself.

    Attributes:
        rates: Of the dense, the narrow and both low-rank networks.
        seeds: Seeds of the search; never those of the final comparison.
        paper: Settings of the published method.
    """

    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    paper: LowRankConfig

    @property
    def decides(self) -> frozenset[str]:
        """The learning rates; the published settings are not searched."""
        return frozenset({"paper", "rates"})

    def config(self, config: RunConfig) -> RunConfig:
        """The recipe's own run, with the search's seeds.

        Raises:
            ConfigError: The search would use a seed of the final comparison.
        """
        return searched_run(config, seeds=self.seeds, baseline=grid.name_at(DENSE, self.rates[0]))

    def variants(self) -> tuple[BranchedVariant, ...]:
        """Every network at every rate."""
        return self._networks().variants()

    def _networks(self) -> grid.Rates:
        first = self.rates[0]
        networks = (
            dense(first), narrow(HALF, first), published(self.paper, first), half(HALF, first),
        )  # fmt: skip
        return grid.Rates(
            networks, self.rates, "validation_accuracy",
            less=False, unit="validation %", scale=100.0, digits=2,
        )  # fmt: skip

    def choice(
        self, config: RunConfig, results: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> Choice:
        """The rate of highest accuracy on the validation part, for each network."""
        found = self._networks().found(results)
        record = search_record(
            config,
            criterion="highest mean validation accuracy, each network by itself",
            **found.told("accuracy"),
        )
        settings = {"source": found.source(config), "rates": found.rates}
        return Choice(found.chosen(), record, settings, found.table())


def found_rates(file_name: str) -> tuple[float, AllRates]:
    """The dense network's rate and those of the others, from a file beside the recipes."""
    rates = dict(found_settings("lowrank", file_name)["rates"])
    return rates.pop(DENSE), AllRates(**rates)
