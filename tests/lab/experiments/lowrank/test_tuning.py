from dataclasses import replace

import pytest

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config
from orthotrain.lab.experiments.lowrank.config import LowRankConfig, Rates
from orthotrain.lab.experiments.lowrank.tuning import (
    Outcome,
    TuneGrid,
    choose,
    outcome,
    tuned_rates,
)

DENSE = Outcome("dense", accuracy=0.95, accuracy_std=0.0, stored=1.0, trainable=1.0)


def reached(name, accuracy, stored):
    return Outcome(name, accuracy=accuracy, accuracy_std=0.0, stored=stored, trainable=stored)


def test_the_grid_is_every_rule_with_every_delay_and_a_yardstick():
    grid = TuneGrid(
        rules=("rank_rtol=0.2", "energy=0.9"),
        delay_fractions=(0.25, 0.5),
        seeds=(9,),
        max_accuracy_loss=0.01,
        base=LowRankConfig(layer_fraction=0.5),
    )
    dense, *rest = grid.variants()
    assert (dense.name, dense.lowrank) == ("dense", None)
    settings = [(v.lowrank.rank, v.lowrank.delay_fraction, v.lowrank.layer_fraction) for v in rest]
    assert settings == [
        ("rank_rtol=0.2", 0.25, 0.5),
        ("rank_rtol=0.2", 0.5, 0.5),
        ("energy=0.9", 0.25, 0.5),
        ("energy=0.9", 0.5, 0.5),
    ]
    assert rest[0].name == "rank_rtol-0.2-delay-0.25"
    assert len({v.name for v in rest}) == 4


def test_the_smallest_that_keeps_the_accuracy_wins():
    outcomes = [reached("a", 0.96, 0.8), reached("b", 0.941, 0.5), reached("c", 0.9, 0.1)]
    assert choose(outcomes, dense=DENSE, max_accuracy_loss=0.01).name == "b"


def test_where_none_keeps_it_the_most_accurate_wins():
    outcomes = [reached("a", 0.80, 0.8), reached("b", 0.90, 0.9), reached("c", 0.90, 0.6)]
    assert choose(outcomes, dense=DENSE, max_accuracy_loss=0.01).name == "c"


def test_an_outcome_is_mean_and_spread_over_seeds():
    results = [
        {"validation_accuracy": 0.8, "stored": 50, "trainable": 20, "dense": 100},
        {"validation_accuracy": 0.9, "stored": 70, "trainable": 40, "dense": 100},
    ]
    found = outcome("x", results)
    assert found.accuracy == pytest.approx(0.85)
    assert found.accuracy_std == pytest.approx(0.0707, abs=1e-4)
    assert (found.stored, found.trainable) == (pytest.approx(0.6), pytest.approx(0.3))


@pytest.mark.bad_input
def test_the_search_does_not_use_seeds_of_the_comparison():
    recipe = find_recipe("digits-minivit")
    config = recipe_config("digits-minivit", "cpu")
    search = recipe.tuned_by()
    assert search.config(config).seeds == search.seeds
    with pytest.raises(ConfigError, match="belong to the final comparison"):
        search.config(replace(config, seeds=search.seeds))


def results_of(grid, best):
    """Accuracies that are highest at these rates; every setting is as good as dense."""
    found = {}
    for variant in grid.variants():
        network, _, rate = variant.name.partition("-lr-")
        accuracy = 0.9 - abs(float(rate) - best[network]) if rate else 0.9
        one = {"validation_accuracy": accuracy, "stored": 50, "trainable": 20, "dense": 100}
        found[variant.name] = [one]
    return found


def test_rates_are_searched_beside_the_settings_and_change_nothing_there():
    config = recipe_config("digits-minivit", "cpu")
    grid = TuneGrid(
        rules=("energy=0.9",), delay_fractions=(0.5,), seeds=(9,), max_accuracy_loss=0.01,
        rates=(1e-3, 2e-3, 4e-3),
    )  # fmt: skip
    names = [one.name for one in grid.variants()]
    assert names[:3] == ["dense", "energy-0.9-delay-0.50", "dense-lr-0.001"]
    assert len(names) == 8
    choice = grid.choice(config, results_of(grid, {"dense": 2e-3, "narrow-50": 4e-3}))
    plain = replace(grid, rates=())
    alone = plain.choice(config, results_of(plain, {}))
    assert choice.settings["lowrank"] == alone.settings["lowrank"]
    assert choice.name == alone.name
    assert choice.settings["rates"] == {"dense": 2e-3, "narrow_50": 4e-3}
    assert choice.record["rates"]["at_the_edge"] == ["narrow-50"]
    assert "the best rate of narrow-50 lies at the edge of the grid" in choice.table


def test_the_narrow_rate_is_read_from_the_file_of_the_search(monkeypatch):
    monkeypatch.setattr(
        "orthotrain.lab.experiments.lowrank.tuning.found_settings",
        lambda family, name: {"rates": {"dense": 1.0, "narrow_50": 7e-3}},
    )
    assert tuned_rates("any.json") == Rates(narrow_50=7e-3)
    monkeypatch.undo()
    for recipe in ("digits", "cifar10"):
        config = recipe_config(f"{recipe}-minivit", "cpu")
        assert config.rates == tuned_rates(f"{recipe}_minivit_tuned.json")
