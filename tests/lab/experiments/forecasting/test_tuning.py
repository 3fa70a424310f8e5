from dataclasses import replace

import pytest

from lab.experiments.forecasting.tiny import CONFIG, trainer_of
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config
from orthotrain.lab.experiments.forecasting.config import Rates, Regularisation
from orthotrain.lab.experiments.forecasting.tuning import ForecastGrid
from orthotrain.lab.experiments.forecasting.variants import forecast_variants
from orthotrain.lab.run.jobs import _Task
from orthotrain.lab.run.record import SeedFolder, write_json

GRID = ForecastGrid(
    rates=(1e-3, 2e-3, 4e-3, 8e-3),
    weight_decays=(0.1, 1.0),
    dropouts=(0.1, 0.3),
    seeds=(100,),
)
NETWORKS = ("dense", "narrow-50", "oialr", "half-50")


def results_of(best, *, pair):
    """Errors that are least at these rates and at this pair."""
    rates = {
        f"{network}-lr-{rate:g}": [{"validation_mse": 1 + abs(rate - best[network])}]
        for network in NETWORKS
        for rate in GRID.rates
    }
    pairs = {
        f"dense-regularised-decay-{decay:g}-dropout-{dropout:g}": [
            {"validation_mse": 1.0 + ((decay, dropout) != pair)}
        ]
        for decay in GRID.weight_decays
        for dropout in GRID.dropouts
    }
    return rates | pairs


def test_every_network_is_tried_as_often_as_any_other():
    variants = GRID.variants()
    assert {v.name for v in variants} == set(results_of(dict.fromkeys(NETWORKS, 0), pair=None))
    assert variants[0].name == "dense-lr-0.001"
    for network in NETWORKS:
        mine = [v for v in variants if v.name.startswith(f"{network}-lr-")]
        assert [v.lr for v in mine] == list(GRID.rates)
    assert {v.cut.rank_rtol for v in variants if v.name.startswith("oialr")} == {0.2}
    pairs = [v for v in variants if v.name.startswith("dense-regularised")]
    assert {v.needs for v in pairs} == {tuple(f"dense-lr-{rate:g}" for rate in GRID.rates)}
    assert {(v.regularised.weight_decay, v.regularised.dropout) for v in pairs} == {
        *((0.1, 0.1), (0.1, 0.3), (1.0, 0.1), (1.0, 0.3))
    }
    with pytest.raises(ConfigError, match=r"4 rates and 2 pairs .* same number of trials"):
        replace(GRID, dropouts=(0.1,))


def test_each_network_gets_what_was_best_for_it():
    best = {"dense": 2e-3, "narrow-50": 8e-3, "oialr": 4e-3, "half-50": 1e-3}
    choice = GRID.choice(CONFIG, results_of(best, pair=(1.0, 0.1)))
    found = choice.settings
    assert Rates(**found["rates"]) == Rates(2e-3, 2e-3, 8e-3, 4e-3, 1e-3)
    assert Regularisation(**found["regularised"]) == Regularisation(1.0, 0.1)
    assert choice.record["at_the_edge"] == ["narrow-50", "half-50"]
    assert len(choice.record["outcomes"]) + len(choice.record["regularised"]) == 20
    assert "> dense, weight decay 1, dropout 0.1  1.0000" in choice.table
    assert "the best, at the dense network's rate" in found["source"]


def test_a_pair_is_tried_at_the_best_rate_of_the_dense_network(tmp_path):
    pair = GRID.variants()[-1]
    reached = {1e-3: (3.0, 1.0), 2e-3: (1.5, 1.6), 4e-3: (2.0, 2.1)}
    folders = []
    for rate, errors in reached.items():
        for seed, error in enumerate(errors):
            folder = SeedFolder(tmp_path / f"{rate:g}-{seed}")
            folder.path.mkdir()
            settings = {"learning_rate": rate}
            write_json(folder.result, {"settings": settings, "validation_mse": error})
            folders.append(folder.path)
    assert pair.with_trainings(folders).lr == 2e-3
    # A run hands over every training that a pair needs, once they have ended.
    needed = _Task(pair, 7).needs(replace(CONFIG, seeds=(100, 101)))
    assert needed == [(f"dense-lr-{r:g}", seed) for r in GRID.rates for seed in (100, 101)]


def test_what_was_found_reaches_each_network():
    rates = Rates(1e-3, 2e-3, 3e-3, 4e-3, 5e-3)
    config = replace(CONFIG, rates=rates, regularised=Regularisation(0.7, 0.4))
    assert {v.name: v.lr for v in forecast_variants(config)} == {
        "dense": 1e-3, "dense-regularised": 2e-3, "narrow-50": 3e-3,
        **{f"oialr-{i}": 4e-3 for i in (1, 2, 3, 4)}, "half-50": 5e-3,
    }  # fmt: skip
    settings = trainer_of("dense-regularised", config=config).settings
    assert (settings["learning_rate"], settings["weight_decay"]) == (2e-3, 0.7)
    assert settings["model"]["dropout"] == 0.4
    assert settings["regularised"] == {"weight_decay": 0.7, "dropout": 0.4}


@pytest.mark.bad_input
def test_the_search_does_not_use_seeds_of_the_comparison():
    for name in ("ettm2-autoformer", "etth2-autoformer"):
        search, config = find_recipe(name).tuned_by(), recipe_config(name, "cpu")
        assert (search.config(config).seeds, search.decides) == ((100,), {"rates", "regularised"})
        with pytest.raises(ConfigError, match="belong to the final comparison"):
            search.config(replace(config, seeds=(100,)))
