from dataclasses import replace

import pytest

from lab.experiments.rivals.tiny import CONFIG, NAMES, OURS, VIT, trainer_of
from orthotrain.errors import ConfigError, MissingPackageError
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.rivals import table
from orthotrain.lab.experiments.rivals.table import RIVALS
from orthotrain.lab.experiments.rivals.variants import rival_search, rival_variants
from orthotrain.lab.named import named
from orthotrain.lab.run.space import Aim, own_config, with_settings

RECIPES = ("stdlib-gpt-rivals", "cifar10-minivit-rivals")
LINE = (
    'the rival lora-peft: peft is needed and not installed; install it with: pip install "orthotr'
)


@pytest.fixture
def no_peft(monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None)


@pytest.mark.parametrize("config", [CONFIG, VIT])
def test_both_recipes_have_every_rival_in_the_same_order(config, no_peft):
    assert tuple(one.name for one in rival_variants(config)) == OURS
    assert OURS[0] == "dense"
    assert OURS[-1] == "default"


def test_a_rival_has_the_rate_of_the_run_or_its_own(no_peft):
    config = with_settings(CONFIG, {"optim.lr": 1.0})
    config = replace(config, own={"galore-like": {"optim.lr": 2.0}})
    for name in OURS:
        found = trainer_of(name, config=own_config(config, name)).settings["learning_rate"]
        assert found == (2 if name == "galore-like" else 1), name


@pytest.mark.bad_input
def test_without_peft_its_rival_is_left_out_or_refused_by_name(no_peft):
    recipe = find_recipe(RECIPES[0])
    for asked in ({"variants": ("dense", "lora-peft")}, {"own": {"lora-peft": {}}}):
        with pytest.raises(MissingPackageError) as failure:
            recipe.chosen(replace(CONFIG, **asked))
        assert str(failure.value).startswith(LINE)
        assert 'pip install "orthotrain[peft]"' in str(failure.value)
    assert "lora-peft" not in [v.name for v in recipe.chosen(CONFIG)]


@pytest.mark.bad_input
def test_a_rival_that_does_not_exist_names_the_near_one():
    asked = replace(CONFIG, variants=("galore",))
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


@pytest.mark.parametrize("config", [CONFIG, VIT])
def test_each_rival_has_the_same_trials(config, no_peft):
    search = rival_search((1.0, 2.0, 3.0), Aim("validation_loss"))
    assert [part.variant for part in search.parts] == list(OURS)
    assert {part.space["optim.lr"].values for part in search.parts} == {(1.0, 2.0, 3.0)}
    assert search.trials == 3
    assert search.config(config).seeds == (100, 101)


def test_names_say_whose_code_it_is():
    like = [name for name in NAMES if name.split("-")[0] in ("pufferfish", "cuttlefish", "galore",
            "relora")]  # fmt: skip
    assert len(like) == 4
    assert all(name.endswith("-like") for name in like)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("config", "settings"),
    [(CONFIG, {"branch.teacher_share": 0.2}), (VIT, {"branch.teacher_share": 0.2}),
     (VIT, {"tuned.rank": "energy=0.5"})],
)  # fmt: skip
def test_settings_that_no_rival_reads_are_refused(config, settings):
    name = next(iter(settings)).partition(".")[0]
    with pytest.raises(ConfigError, match=rf"^{name}: rivals "):
        with_settings(config, settings)
