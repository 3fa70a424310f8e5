"""The search behind a recipe's tuned settings: a small grid, judged on the validation part."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.branches import rates as grid
from orthotrain.lab.experiments.branches.variants import DENSE, BranchedVariant, dense, narrow
from orthotrain.lab.experiments.lowrank.config import HALF, LowRankConfig, LowRankVariant, Rates
from orthotrain.lab.experiments.search import (
    found_settings,
    search_record,
    searched_by,
    searched_run,
)
from orthotrain.lab.run.config import RunConfig
from orthotrain.lab.run.experiment import Choice


@dataclass(frozen=True)
class Outcome:
    """What a setting reached, over the seeds of the search.

    Attributes:
        name: Name of the variant.
        accuracy: Mean validation accuracy, a fraction.
        accuracy_std: Its sample standard deviation, 0 for one seed.
        stored: Mean share of the dense network's numbers that is stored.
        trainable: Mean share that is trained.
    """

    name: str
    accuracy: float
    accuracy_std: float
    stored: float
    trainable: float


def outcome(name: str, results: Sequence[Mapping[str, Any]]) -> Outcome:
    """Mean and spread over seeds.

    Args:
        name: Name of the variant.
        results: Contents of result.json, one per seed, at least one.
    """
    accuracies = [result["validation_accuracy"] for result in results]
    return Outcome(
        name=name,
        accuracy=statistics.fmean(accuracies),
        accuracy_std=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        stored=statistics.fmean(result["stored"] / result["dense"] for result in results),
        trainable=statistics.fmean(result["trainable"] / result["dense"] for result in results),
    )


def choose(outcomes: Sequence[Outcome], *, dense: Outcome, max_accuracy_loss: float) -> Outcome:
    """The smallest stored size within reach of dense training's accuracy.

    Where no setting is within ``max_accuracy_loss``, the most accurate one.

    Args:
        outcomes: All settings of the grid, at least one.
        dense: Dense training with the same seeds.
        max_accuracy_loss: Largest accepted loss of mean accuracy, a fraction.

    Raises:
        ConfigError: The grid is empty.
    """
    if not outcomes:
        raise ConfigError("tune: the grid is empty; add rules and delays to it")
    close = [o for o in outcomes if o.accuracy >= dense.accuracy - max_accuracy_loss]
    if close:
        return min(close, key=lambda o: (o.stored, -o.accuracy))
    return max(outcomes, key=lambda o: (o.accuracy, -o.stored))


def _table(outcomes: Sequence[Outcome], chosen: Outcome) -> str:
    width = max(len(o.name) for o in outcomes)
    lines = [f"  {'setting':{width}}  validation %      stored %  trainable %"]
    lines += [
        f"{'>' if o.name == chosen.name else ' '} {o.name:{width}}  "
        f"{100 * o.accuracy:6.2f} +- {100 * o.accuracy_std:4.2f}  {100 * o.stored:8.1f}  "
        f"{100 * o.trainable:11.1f}"
        for o in outcomes
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class TuneGrid:
    """Settings of low-rank training that ``orthotrain tune`` compares.

    Attributes:
        rules: Rank rules, such as energy=0.9.
        delay_fractions: Dense steps before the switch over all steps.
        seeds: Seeds of the search; never those of the final comparison.
        max_accuracy_loss: How far below dense training's mean validation accuracy of the same
            seeds a setting may lie; of those that remain the smallest stored size wins.
        base: What all settings of the grid share.
        rates: Peak learning rates of the dense network and of that of half its numbers; a search
            beside that of the settings, and without effect on it.
    """

    rules: tuple[str, ...]
    delay_fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    max_accuracy_loss: float
    base: LowRankConfig = field(default_factory=LowRankConfig)
    rates: tuple[float, ...] = ()

    @property
    def decides(self) -> frozenset[str]:
        """The settings of low-rank training, and the narrow network's learning rate."""
        return frozenset({"paper", "tuned", "rates"})

    def config(self, config: RunConfig) -> RunConfig:
        """The recipe's own run, with the search's seeds.

        Raises:
            ConfigError: The search would use a seed of the final comparison.
        """
        return searched_run(config, seeds=self.seeds, baseline=DENSE)

    def variants(self) -> tuple[BranchedVariant, ...]:
        """Dense training as the baseline, every rule with every delay, then the rates."""
        return (
            LowRankVariant(DENSE, "dense", "baseline of the search"),
            *self._settings(),
            *(self._networks().variants() if self.rates else ()),
        )

    def _settings(self) -> tuple[LowRankVariant, ...]:
        return tuple(
            LowRankVariant(
                f"{rule.replace('=', '-')}-delay-{delay:.2f}",
                f"{rule.replace('=', ' ')}, delay {100 * delay:.0f} %",
                "a setting of the grid",
                lowrank=replace(self.base, delay_fraction=delay, rank=rule),
            )
            for rule in self.rules
            for delay in self.delay_fractions
        )

    def _networks(self) -> grid.Rates:
        first = self.rates[0]
        return grid.Rates(
            (dense(first), narrow(HALF, first)), self.rates, "validation_accuracy",
            less=False, unit="validation %", scale=100.0, digits=2,
        )  # fmt: skip

    def choice(
        self, config: RunConfig, results: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> Choice:
        """The smallest stored size within reach of dense training's accuracy; the best rates."""
        settings = {v.name: v.lowrank for v in self._settings() if v.lowrank is not None}
        dense, *outcomes = (outcome(name, results[name]) for name in (DENSE, *settings))
        chosen = choose(outcomes, dense=dense, max_accuracy_loss=self.max_accuracy_loss)
        found = self._networks().found(results) if self.rates else None
        record = search_record(
            config,
            criterion=(
                "smallest stored size whose mean validation accuracy is at most "
                f"{self.max_accuracy_loss:g} below dense training's"
            ),
            dense=asdict(dense),
            outcomes=[asdict(o) for o in outcomes],
            chosen=chosen.name,
        )
        source = (
            f"{searched_by(config)}: {chosen.name}, validation "
            f"{100 * chosen.accuracy:.2f} % at {100 * chosen.stored:.1f} % stored against "
            f"{100 * dense.accuracy:.2f} % dense"
        )
        kept: dict[str, Any] = {"source": source, "lowrank": asdict(settings[chosen.name])}
        table = _table([dense, *outcomes], chosen)
        if found is not None:
            record["rates"] = {
                "criterion": "highest mean validation accuracy, each network by itself",
                **found.told("accuracy"),
            }
            kept["rates_source"] = found.source(config)
            kept["rates"] = found.rates
            table = f"{table}\n{found.table()}"
        return Choice(chosen.name, record, kept, table)


def tuned_settings(file_name: str) -> LowRankConfig:
    """Settings that ``orthotrain tune`` wrote into a file beside the recipes."""
    return LowRankConfig(**found_settings("lowrank", file_name)["lowrank"])


def tuned_rates(file_name: str) -> Rates:
    """The narrow network's rate, from the same file; the dense one's is the recipe's own."""
    return Rates(narrow_50=found_settings("lowrank", file_name)["rates"]["narrow_50"])
