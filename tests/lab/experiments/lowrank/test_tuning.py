import json
from importlib import resources

import pytest

from orthotrain.lab.experiments.catalog import recipe_config
from orthotrain.lab.run.space import own_config


def test_narrow_networks_have_the_rate_of_the_file_of_the_search():
    folder = resources.files("orthotrain.lab.experiments.lowrank.recipes")
    found = json.loads(folder.joinpath("digits_minivit_tuned.json").read_text())["own"]
    config = recipe_config("digits-minivit", "cpu")
    for name in ("narrow-50", "narrow-50-short", "narrow-50-teacher"):
        optim = own_config(config, name).optim
        assert optim.lr == found["narrow-50"]["optim.lr"] != config.optim.lr
        # The floor of the schedule is the same share of the peak.
        assert optim.min_lr / optim.lr == pytest.approx(config.optim.min_lr / config.optim.lr)
    assert own_config(config, "half-50").optim == config.optim
