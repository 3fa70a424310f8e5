from dataclasses import replace

import pytest

from lab.experiments.language.tiny import CONFIG
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config
from orthotrain.lab.experiments.language.config import Rates
from orthotrain.lab.experiments.language.tuning import RateGrid

GRID = RateGrid(rates=(1e-3, 2e-3, 4e-3), teacher=2e-3, seeds=(100,))
NARROW = ("narrow-75", "narrow-50", "narrow-30")
NETWORKS = ("dense", *NARROW, *(f"{name}-teacher" for name in NARROW))


def results_of(best):
    """Bits that are least at these rates."""
    return {
        f"{network}-lr-{rate:g}": [{"validation_bits": 2 + abs(rate - best[network])}]
        for network in NETWORKS
        for rate in GRID.rates
    }


def test_every_network_has_every_rate_and_the_dense_one_comes_first():
    variants = GRID.variants()
    assert [(v.name, v.lr, v.stored) for v in variants[:2]] == [
        ("dense-lr-0.001", 1e-3, None),
        ("dense-lr-0.002", 2e-3, None),
    ]
    assert {(v.stored, v.lr) for v in variants} == {
        (stored, rate) for stored in (None, 0.75, 0.5, 0.3) for rate in GRID.rates
    }
    assert {(v.needs, v.same_seed) for v in variants if v.teacher} == {("dense-lr-0.002", True)}
    assert {v.needs for v in variants if not v.teacher} == {None}
    assert [v.stored for v in variants if v.teacher] == 3 * [0.75] + 3 * [0.5] + 3 * [0.3]


def test_each_network_gets_its_own_best_rate():
    best = dict.fromkeys(NETWORKS, 2e-3)
    choice = GRID.choice(CONFIG, results_of(best))
    assert choice.record["at_the_edge"] == []
    assert "edge" not in choice.settings["source"] + choice.table
    best |= {"narrow-50": 4e-3, "narrow-30": 1e-3, "narrow-30-teacher": 4e-3}
    choice = GRID.choice(CONFIG, results_of(best))
    assert Rates(**choice.settings["rates"]) == Rates(
        *(2e-3, 2e-3, 4e-3, 1e-3), *(2e-3, 2e-3, 4e-3)
    )
    assert len(choice.record["outcomes"]) == 21


def test_a_best_rate_at_the_edge_of_the_grid_is_told():
    choice = GRID.choice(CONFIG, results_of(dict.fromkeys(NETWORKS, 2e-3) | {"narrow-50": 4e-3}))
    assert choice.record["at_the_edge"] == ["narrow-50"]
    assert "; at the edge of the grid for narrow-50" in choice.settings["source"]
    assert "the best rate of narrow-50 lies at the edge of the grid" in choice.table


@pytest.mark.bad_input
def test_the_search_does_not_use_seeds_of_the_comparison():
    search = find_recipe("stdlib-gpt").tuned_by()
    config = recipe_config("stdlib-gpt", "cpu")
    assert search.config(config).seeds == (100,)
    with pytest.raises(ConfigError, match="belong to the final comparison"):
        search.config(replace(config, seeds=(100,)))
