"""The search for settings of forecasters: as many trials for each network as for any other.

The regularised dense network is searched at the best rate of the dense one, so it has the benefit
of those trials besides its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Final

from orthotrain.lab.experiments.branches import rates as grid
from orthotrain.lab.experiments.branches.variants import (
    DENSE,
    BranchedVariant,
    dense,
    half,
    narrow,
)
from orthotrain.lab.experiments.forecasting.config import Regularisation
from orthotrain.lab.experiments.forecasting.variants import (
    HALF,
    REGULARISED,
    ForecastVariant,
    oialr,
    regularised,
)
from orthotrain.lab.experiments.search import search_record, searched_run
from orthotrain.lab.run.config import RunConfig, need
from orthotrain.lab.run.experiment import Choice

# The published method is searched at this strength; its rate is taken for all of them.
_STRENGTH: Final = 2


@dataclass(frozen=True)
class ForecastGrid:
    """Settings of forecasters that ``orthotrain tune`` compares, for each network by itself.

    Attributes:
        rates: Peak learning rates of the dense, the narrow and the low-rank networks.
        weight_decays: Weight decays of the regularised dense network.
        dropouts: Its dropouts, each with each weight decay; as many pairs as there are rates.
        seeds: Seeds of the search; never those of the final comparison.
    """

    rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    dropouts: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        pairs = len(self.weight_decays) * len(self.dropouts)
        need(
            pairs == len(self.rates),
            f"tune: {len(self.rates)} rates and {pairs} pairs of weight decay and dropout; each "
            "network needs the same number of trials",
        )

    @property
    def decides(self) -> frozenset[str]:
        """The learning rates, and what the regularised network has."""
        return frozenset({"rates", "regularised"})

    def config(self, config: RunConfig) -> RunConfig:
        """The recipe's own run, with the search's seeds.

        Raises:
            ConfigError: The search would use a seed of the final comparison.
        """
        baseline = grid.name_at(DENSE, self.rates[0])
        return searched_run(config, seeds=self.seeds, baseline=baseline)

    def variants(self) -> tuple[BranchedVariant, ...]:
        """The dense network, the narrow one and both low-rank ones at every rate; every pair."""
        return (*self._networks().variants(), *self._pairs().values())

    def _networks(self) -> grid.Rates:
        first = self.rates[0]
        published = replace(oialr(_STRENGTH, first), name="oialr")
        networks = (dense(first), narrow(HALF, first), published, half(HALF, first))
        return grid.Rates(
            networks, self.rates, "validation_mse", less=True, unit="validation MSE", digits=4
        )

    def _pairs(self) -> dict[Regularisation, ForecastVariant]:
        pairs = [Regularisation(*pair) for pair in product(self.weight_decays, self.dropouts)]
        return {
            pair: replace(
                regularised(None, pair),
                name=f"{REGULARISED}-decay-{pair.weight_decay:g}-dropout-{pair.dropout:g}",
                title=f"dense, weight decay {pair.weight_decay:g}, dropout {pair.dropout:g}",
                note="a pair of the grid, at the best rate of the dense network",
                needs=tuple(grid.name_at(DENSE, rate) for rate in self.rates),
            )
            for pair in pairs
        }

    def choice(
        self, config: RunConfig, results: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> Choice:
        """The settings of least error on the validation part, for each network."""
        networks, pairs = self._networks(), self._pairs()
        found = networks.found(results)
        errors = {pair: networks.mean(results[one.name]) for pair, one in pairs.items()}
        best = min(errors, key=errors.__getitem__)
        record = search_record(
            config,
            criterion="least mean squared error on the validation part, each network by itself",
            **found.told("mse"),
            regularised=[{**asdict(pair), "mse": error} for pair, error in errors.items()],
            chosen_regularised=asdict(best),
        )
        title = pairs[best].title
        settings = {
            "source": f"{found.source(config)}; of {len(pairs)} pairs of weight decay and dropout "
            "the best, at the dense network's rate",
            "rates": {**found.rates, "dense_regularised": found.rates[DENSE]},
            "regularised": asdict(best),
        }
        lines = [
            f"{'>' if pair is best else ' '} {pairs[pair].title}  {error:.4f}"
            for pair, error in errors.items()
        ]
        table = "\n".join([found.table(), *lines])
        return Choice(f"{found.chosen()}, {title}", record, settings, table)
