import pytest

from lab.experiments.rivals.tiny import CONFIG, NAMES, OURS, VIT
from orthotrain.errors import ConfigError, MissingPackageError
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.rivals import table
from orthotrain.lab.experiments.rivals.recipes.stdlib_gpt_rivals import GRID
from orthotrain.lab.experiments.rivals.table import RIVALS
from orthotrain.lab.experiments.rivals.tuning import RivalGrid
from orthotrain.lab.experiments.rivals.variants import rival_variants
from orthotrain.lab.named import named

RECIPES = ("stdlib-gpt-rivals", "cifar10-minivit-rivals")
LINE = (
    'the rival lora-peft: peft is needed and not installed; install it with: pip install "orthotr'
)


@pytest.fixture
def no_peft(monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None)


def with_rates(config, **rates):
    return type(config)(**{**vars(config), "rival_rates": rates})


@pytest.mark.parametrize("config", [CONFIG, VIT])
def test_both_recipes_have_every_rival_in_the_same_order(config, no_peft):
    assert tuple(one.name for one in rival_variants(config)) == OURS
    assert OURS[0] == "dense"
    assert OURS[-1] == "default"


def test_a_rival_has_its_own_rate_or_that_of_dense(no_peft):
    found = {v.name: v.lr for v in rival_variants(with_rates(CONFIG, dense=1.0, galore_like=2.0))}
    assert found["galore-like"] == 2
    assert {rate for name, rate in found.items() if name != "galore-like"} == {1}


@pytest.mark.bad_input
def test_without_peft_its_rival_is_left_out_or_refused_by_name(no_peft):
    recipe = find_recipe(RECIPES[0])
    asked = type(CONFIG)(**{**vars(CONFIG), "variants": ("dense", "lora-peft")})
    with pytest.raises(MissingPackageError) as failure:
        recipe.chosen(asked)
    assert str(failure.value).startswith(LINE)
    assert 'pip install "orthotrain[peft]"' in str(failure.value)
    assert "lora-peft" not in [v.name for v in recipe.chosen(CONFIG)]


@pytest.mark.bad_input
def test_a_rival_that_does_not_exist_names_the_near_one():
    asked = type(CONFIG)(**{**vars(CONFIG), "variants": ("galore",)})
    with pytest.raises(ConfigError, match=r"did you mean galore-like\?"):
        find_recipe(RECIPES[0]).chosen(asked)


def test_a_row_names_a_function_that_cites_its_source():
    for row in RIVALS:
        if not row.make or row.package:  # what needs a package is tested where that is installed
            continue
        make = named(row.make)
        if row.name.endswith("-like"):
            assert make.__doc__.startswith(f"{row.title.split(',')[0]}: "), row.name
            assert f"arXiv:{row.source.split('arXiv:')[1]}" in make.__doc__
        assert row.lacks


def test_each_rival_has_as_many_trials_as_any_other(no_peft):
    tried = GRID.variants()
    assert len(tried) == len(OURS) * len(GRID.rates)
    for name in OURS:
        mine = [v for v in tried if v.name.startswith(f"{name}-lr-")]
        assert [v.lr for v in mine] == list(GRID.rates), name


def test_the_search_gives_each_rival_its_best_rate(no_peft):
    grid = RivalGrid(rates=(1.0, 2.0, 3.0), seeds=(7,), field="validation_accuracy", less=False)
    results = {v.name: [{"validation_accuracy": -abs(v.lr - 2)}] for v in grid.variants()}
    results["galore-like-lr-3"] = [{"validation_accuracy": 1.0}]
    choice = grid.choice(CONFIG, results)
    assert choice.settings["rates"]["galore_like"] == 3
    assert choice.settings["rates"]["oialr_paper"] == 2
    assert choice.record["at_the_edge"] == ["galore-like"]
    # What it found is what a run takes.
    found = {v.name: v.lr for v in rival_variants(with_rates(CONFIG, **choice.settings["rates"]))}
    assert found == {name: 3 if name == "galore-like" else 2 for name in OURS}


def test_names_say_whose_code_it_is():
    like = [name for name in NAMES if name.split("-")[0] in ("pufferfish", "cuttlefish", "galore",
            "relora")]  # fmt: skip
    assert len(like) == 4
    assert all(name.endswith("-like") for name in like)
