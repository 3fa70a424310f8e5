from dataclasses import replace

from lab.experiments.forecasting.tiny import CONFIG, trainer_of
from orthotrain.lab.experiments.forecasting.config import Rates, Regularisation
from orthotrain.lab.experiments.forecasting.variants import forecast_variants


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
