from dataclasses import replace

from lab.experiments.forecasting.tiny import CONFIG, trainer_of
from orthotrain.lab.experiments.catalog import recipe_config
from orthotrain.lab.experiments.forecasting.variants import forecast_variants
from orthotrain.lab.run.space import own_config


def test_what_was_found_reaches_each_network():
    found = {"optim.lr": 2e-3, "optim.weight_decay": 0.7, "model.dropout": 0.4}
    config = replace(CONFIG, own={"oialr-2": {"optim.lr": 1e-2}, "dense-regularised": found})
    for one in forecast_variants(config):
        settings = trainer_of(one.name, config=config).settings
        own = config.own.get(one.name, {})
        assert settings["learning_rate"] == own.get("optim.lr", CONFIG.optim.lr), one.name
        assert settings["weight_decay"] == own.get("optim.weight_decay", 0.0), one.name
        assert settings["model"]["dropout"] == own.get("model.dropout", 0.05), one.name


def test_without_a_search_the_regularised_network_is_regularised():
    for recipe, scale in (("ettm2-autoformer", "smoke"), ("etth2-autoformer", "full")):
        plain, own = (
            own_config(recipe_config(recipe, scale), name)
            for name in ("dense", "dense-regularised")
        )
        assert own.optim.weight_decay > plain.optim.weight_decay
        assert own.model.dropout > plain.model.dropout
        assert own.optim.lr == plain.optim.lr
