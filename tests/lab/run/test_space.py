from dataclasses import replace

import pytest

from lab.run.searched import EXPERIMENT, SEARCH, SPACE, SearchedRun
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config, recipe_names
from orthotrain.lab.run.jobs import Run, run_all
from orthotrain.lab.run.record import RunFolder, plain, training_settings
from orthotrain.lab.run.space import (
    COMPUTE,
    STORED,
    Aim,
    Number,
    OneOf,
    Part,
    Search,
    own_config,
    with_settings,
)

CONFIG = EXPERIMENT.at("smoke")


def test_settings_follow_what_was_drawn_also_as_multiples_and_texts():
    space = {
        "optim.min_lr": Number(0.1, 1.0, of="optim.lr"),
        "optim.lr": Number(0.1, 1.0),
        "optim.rule": Number(0.1, 0.9, form="energy={:.3g}"),
    }
    part = Part("plain", space, (Aim("validation_loss"),))
    drawn = {"optim.min_lr": 0.5, "optim.lr": 0.02, "optim.rule": 0.12345}
    found = part.settings(CONFIG, drawn)
    assert found == {"optim.lr": 0.02, "optim.min_lr": 0.01, "optim.rule": "energy=0.123"}
    # All at once: a rate below the floor that was there is right with a lower floor.
    optim = with_settings(CONFIG, found | {"optim.lr": 0.005, "optim.min_lr": 0.001}).optim
    assert (optim.lr, optim.min_lr, optim.width) == (0.005, 0.001, 4)
    # Of a setting that is not searched, the multiple is of its own value.
    alone = Part("plain", {"optim.min_lr": space["optim.min_lr"]}, part.aims)
    assert alone.settings(CONFIG, drawn) == {"optim.min_lr": pytest.approx(0.05)}


def test_shares_of_a_range_reach_both_ends_and_give_each_choice_as_much():
    assert [Number(0.01, 1.0, log=True).at(share) for share in (0.0, 0.5)] == [
        0.01,
        pytest.approx(0.1),
    ]
    assert Number(-1.0, 3.0).at(0.25) == 0.0
    shares = [(i + 0.5) / 100 for i in range(100)]
    whole = [Number(1, 4, whole=True).at(share) for share in shares]
    assert [whole.count(k) for k in (1, 2, 3, 4)] == [25] * 4
    logs = [Number(1, 8, log=True, whole=True).at(share) for share in shares]
    assert set(logs) == set(range(1, 9))
    assert logs.count(1) > logs.count(8)
    assert [OneOf(("a", "b", "c", "d")).at(share) for share in (0.0, 0.26, 0.5, 0.99)] == list(
        "abcd"
    )


def test_a_variant_has_settings_of_its_own_and_the_others_do_not(tmp_path):
    config = replace(CONFIG, seeds=(0,), own={"after": {"optim.lr": 0.5, "optim.width": 9}})
    plain_one, after, _ = EXPERIMENT.chosen(config)
    assert (plain_one.lr, after.lr) == (0.1, 0.5)
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.open(config)
        run_all(Run(EXPERIMENT.build, config, folder), (plain_one, after))
    found = {name: folder.results(name, (0,))[0] for name in ("plain", "after")}
    assert {name: (one["lr"], one["stored"]) for name, one in found.items()} == {
        "plain": (0.1, 4), "after": (0.5, 9),
    }  # fmt: skip
    # Runs from before there were any are the same as without them, and a checkpoint says its own.
    assert "own" not in plain(CONFIG)
    assert training_settings(own_config(config, "after"))["optim"]["width"] == 9
    assert training_settings(own_config(config, "plain")) == training_settings(CONFIG)


def test_objectives_are_named_and_the_budget_is_the_same_for_all_parts():
    part = SEARCH.parts[0].with_objectives(["loss", "stored", "compute"])
    assert part.aims == (SEARCH.parts[0].aims[0], STORED, COMPUTE)
    assert SEARCH.parts[1].with_objectives([]) is SEARCH.parts[1]
    assert [one.variant for one in SEARCH.chosen(["after"])] == ["after"]
    assert STORED.read({"stored": 3, "dense": 12}) == 0.25
    assert Aim("validation_mse").looked == "mse"


def test_every_declared_search_has_variants_and_settings_that_its_recipe_has():
    found = 0
    for name in recipe_names():
        recipe = find_recipe(name)
        if not recipe.search or not isinstance(search := recipe.tuned_by(), Search):
            continue
        found += 1
        for scale in recipe.config:
            config = recipe_config(name, scale)
            assert search.config(config).seeds == search.seeds
            assert not set(search.seeds) & set(config.seeds)
            for part in search.parts:
                ends = [
                    part.settings(config, {k: end(one) for k, one in part.space.items()})
                    for end in (lowest, highest)
                ]
                for settings in ends:
                    recipe.variant(with_settings(config, settings), part.variant)
                    if part.beside:
                        recipe.variant(config, part.beside)
    assert found >= 5


def lowest(one):
    return one.values[0] if isinstance(one, OneOf) else one.low


def highest(one):
    return one.values[-1] if isinstance(one, OneOf) else one.high


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("bounds", "needed"),
    [
        ({"low": 2.0, "high": 1.0}, "the lower one first"),
        ({"low": 1.0, "high": 1.0}, "the lower one first"),
        ({"low": 0.0, "high": float("inf")}, "must be finite"),
        ({"low": 0.0, "high": 1.0, "log": True}, "need to be positive"),
        ({"low": 0.5, "high": 4, "whole": True}, "must be whole numbers"),
    ],
)
def test_bounds_that_cannot_be_used_are_refused(bounds, needed):
    with pytest.raises(ConfigError, match=rf"bounds \[.*{needed}"):
        Number(**bounds)


@pytest.mark.bad_input
def test_what_a_search_cannot_vary_or_aim_at_is_named():
    with pytest.raises(ConfigError, match="leaves no choice"):
        OneOf(("one",))
    with pytest.raises(ConfigError, match="has no settings to vary"):
        Part("plain", {}, (STORED,))
    with pytest.raises(ConfigError, match="nothing to aim at"):
        Part("plain", SPACE, ())
    wrong = Search((Part("plain", {"optim.lrr": Number(0, 1)}, (STORED,)),))
    with pytest.raises(ConfigError, match=r"no setting 'optim.lrr'; did you mean .*lr"):
        wrong.config(CONFIG)
    with pytest.raises(ConfigError, match=r"no setting 'optim\.lr\.x'"):
        with_settings(CONFIG, {"optim.lr.x": 1})
    with pytest.raises(ConfigError, match=r"'aftr' is not searched; did you mean"):
        SEARCH.chosen(["aftr"])
    with pytest.raises(ConfigError, match="has no number 'compute'"):
        COMPUTE.read({"variant": "plain"})
    with pytest.raises(ConfigError, match="belong to the final comparison"):
        SEARCH.config(replace(CONFIG, seeds=(100,)))
    with pytest.raises(ConfigError, match=r"own: 'aftr' is not a variant; did you mean"):
        EXPERIMENT.chosen(SearchedRun(own={"aftr": {"optim.lr": 1.0}}))
