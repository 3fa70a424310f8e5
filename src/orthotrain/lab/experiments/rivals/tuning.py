"""The search for the learning rate of each rival: the same rates for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orthotrain.lab.experiments.branches import rates as grid
from orthotrain.lab.experiments.branches.variants import DENSE, BranchedVariant
from orthotrain.lab.experiments.rivals.table import installed
from orthotrain.lab.experiments.rivals.variants import variant_of
from orthotrain.lab.experiments.search import search_record, searched_run
from orthotrain.lab.run.config import RunConfig
from orthotrain.lab.run.experiment import Choice


@dataclass(frozen=True)
class RivalGrid:
    """Learning rates that ``orthotrain tune`` compares, for each rival by itself.

    Attributes:
        rates: Peak learning rates.
        seeds: Seeds of the search; never those of the final comparison.
        field: What decides, by its name in result.json.
        less: Whether less of it is better.
    """

    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    field: str
    less: bool

    @property
    def decides(self) -> frozenset[str]:
        """The learning rates."""
        return frozenset({"rival_rates"})

    def config(self, config: RunConfig) -> RunConfig:
        """The recipe's own run, with the search's seeds.

        Raises:
            ConfigError: The search would use a seed of the final comparison.
        """
        return searched_run(config, seeds=self.seeds, baseline=grid.name_at(DENSE, self.rates[0]))

    def variants(self) -> tuple[BranchedVariant, ...]:
        """Every rival at every rate."""
        return self._searched().variants()

    def _searched(self) -> grid.Rates:
        networks = tuple(variant_of(row, self.rates[0]) for row in installed())
        unit = self.field.replace("_", " ")
        return grid.Rates(networks, self.rates, self.field, less=self.less, unit=unit, digits=4)

    def choice(
        self, config: RunConfig, results: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> Choice:
        """The best rate on the validation part, for each rival."""
        found = self._searched().found(results)
        record = search_record(
            config,
            criterion=f"best {self.field}, each rival by itself",
            **found.told(self.field.removeprefix("validation_")),
        )
        kept = {"source": found.source(config), "rates": found.rates}
        return Choice(found.chosen(), record, kept, found.table())
