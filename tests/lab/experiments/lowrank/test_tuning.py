from orthotrain.lab.experiments.catalog import recipe_config
from orthotrain.lab.experiments.lowrank.config import Rates
from orthotrain.lab.experiments.lowrank.tuning import tuned_rates


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
