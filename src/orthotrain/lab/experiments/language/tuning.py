"""The search for learning rates: dense and each narrow network, taught or not, on one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orthotrain.lab.experiments.branches import rates as grid
from orthotrain.lab.experiments.branches.variants import (
    DENSE,
    BranchedVariant,
    dense,
    narrow,
    taught,
)
from orthotrain.lab.experiments.language.config import Rates
from orthotrain.lab.experiments.language.variants import SIZES
from orthotrain.lab.experiments.search import found_settings, search_record, searched_run
from orthotrain.lab.run.config import RunConfig
from orthotrain.lab.run.experiment import Choice


@dataclass(frozen=True)
class RateGrid:
    """Learning rates that ``orthotrain tune`` compares, for each network by itself.

    Attributes:
        rates: Peak learning rates.
        teacher: That of the dense network that teaches, one of ``rates``.
        seeds: Seeds of the search; never those of the final comparison.
    """

    rates: tuple[float, ...]
    teacher: float
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
        baseline = grid.name_at(DENSE, self.rates[0])
        return searched_run(config, seeds=self.seeds, baseline=baseline)

    def variants(self) -> tuple[BranchedVariant, ...]:
        """The dense network, then each narrow one without and with a teacher, at every rate."""
        return self._searched().variants()

    def _searched(self) -> grid.Rates:
        first, teacher = self.rates[0], grid.name_at(DENSE, self.teacher)
        alone = tuple(narrow(size, first) for size in SIZES)
        with_teacher = (replace(taught(one), needs=teacher) for one in alone)
        networks = (dense(first), *alone, *with_teacher)
        return grid.Rates(
            networks, self.rates, "validation_bits", less=True, unit="validation bits"
        )

    def choice(
        self, config: RunConfig, results: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> Choice:
        """The rate of fewest bits on the validation part, for each network."""
        found = self._searched().found(results)
        record = search_record(
            config,
            criterion="fewest validation bits per byte, each network by itself",
            **found.told("bits"),
        )
        kept = {"source": found.source(config), "rates": found.rates}
        return Choice(found.chosen(), record, kept, found.table())


def found_rates(file_name: str) -> Rates:
    """The learning rates that ``orthotrain tune`` wrote into a file beside the recipes."""
    return Rates(**found_settings("language", file_name)["rates"])
