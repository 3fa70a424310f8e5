from dataclasses import replace

import pytest
import torch

from lab.experiments.language.tiny import CONFIG
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.branches.method import low_rank_method
from orthotrain.lab.experiments.branches.variants import PUBLISHED, BranchOptim, Cut
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config
from orthotrain.lab.experiments.language.build import network_of, steps_of
from orthotrain.lab.experiments.language.config import (
    GPTConfig,
    TrainingConfig,
)
from orthotrain.lab.experiments.language.networks import build_gpt, numbers_of
from orthotrain.lab.experiments.language.variants import language_variants
from orthotrain.lab.run.space import own_config
from orthotrain.lowrank import AdaptiveLowRank

NAMES = {
    "dense", "branch-75-5", "branch-50-5", "branch-50-20", "branch-30-37", "branch-50-20-alone",
    *(f"half-{size}" for size in (75, 50, 30)),
    *(
        f"narrow-{size}{kind}"
        for size in (75, 50, 30)
        for kind in ("", "-short", "-teacher", "-teacher-short")
    ),
    "oialr-paper", "frozen-50", "frozen-50-plain",
}  # fmt: skip


def test_the_names_are_those_of_the_page():
    found = language_variants(recipe_config("stdlib-gpt", "cpu"))
    assert {one.name for one in found} == NAMES
    assert len(found) == len(NAMES)
    assert found[0].name == "dense"


def test_what_learns_or_starts_from_the_dense_model_needs_that_of_its_seed():
    for one in language_variants(CONFIG):
        needs = "dense" if one.teacher or one.branch is not None else None
        needs = "frozen-50" if one.name == "frozen-50-plain" else needs  # for its ranks
        assert (one.needs, one.same_seed) == (needs, needs is not None)


def test_the_demo_trains_fewer_with_one_seed():
    config = recipe_config("stdlib-gpt", "demo")
    assert len(config.seeds) == 1
    assert [one.name for one in find_recipe("stdlib-gpt").chosen(config)] == [
        "dense", "branch-75-5", "branch-50-20", "branch-30-37",
        "narrow-75", "narrow-50", "narrow-50-short", "narrow-30", "oialr-paper",
    ]  # fmt: skip


@pytest.mark.bad_input
def test_no_other_recipe_has_a_demo():
    with pytest.raises(ConfigError, match="has no scale 'demo'; choose from smoke, cpu, full"):
        recipe_config("digits-minivit", "demo")


def test_the_reference_size_is_that_of_the_log():
    config = recipe_config("stdlib-gpt", "cpu")
    assert config.model == GPTConfig(context=64, width=128, depth=2, heads=4)
    assert numbers_of(config.model) == 434_816
    assert config.seeds == (0, 1, 2)


def test_narrow_networks_store_at_least_their_share():
    config = recipe_config("stdlib-gpt", "cpu")
    full = numbers_of(config.model)
    for one in (v for v in language_variants(config) if v.stored is not None):
        network = network_of(config, one)
        assert numbers_of(network) >= one.stored * full - 1
        thinner = replace(network, width=network.width - network.heads)
        assert numbers_of(thinner) < one.stored * full
        assert sum(p.numel() for p in build_gpt(network).parameters()) == numbers_of(network)


def test_steps_are_shares_of_the_dense_ones_and_short_ones_the_branchs_compute():
    config = recipe_config("stdlib-gpt", "cpu")
    steps = {
        one.name: steps_of(config, one, network_of(config, one))
        for one in language_variants(config)
    }
    total = config.optim.steps
    assert steps["branch-75-5"] == steps["branch-50-5"] == total // 20
    assert steps["branch-50-20"] == steps["branch-50-20-alone"] == total // 5
    assert steps["branch-30-37"] == round(0.37 * total)
    # The width is rounded up, so at 75 % a step costs a little more than one of the branch.
    for size, percent in ((75, 5), (50, 20), (30, 37)):
        branch = 0.95 * steps[f"branch-{size}-{percent}"]
        assert (
            branch < steps[f"narrow-{size}-teacher-short"] < steps[f"narrow-{size}-short"] < total
        )
    others = {name for name in NAMES if not name.startswith("branch") and "short" not in name}
    assert {steps[name] for name in others} == {total}


def test_rates_are_those_that_the_search_found():
    """As the grid of the first search found them: docs/log.md."""
    config = recipe_config("stdlib-gpt", "cpu")
    lower = {f"narrow-{size}{length}" for size in (75, 50) for length in ("", "-short")}
    for name in NAMES:
        assert own_config(config, name).optim.lr == (3e-3 if name in lower else 6e-3), name


def test_one_cut_at_half_or_after_the_first_steps_or_as_published_again_and_again():
    def steps_of_cuts(cut, total):
        schedule = low_rank_method(cut, total_steps=total).schedule(total)
        return [step for step in range(1, total + 1) if schedule.due(step)]

    assert steps_of_cuts(Cut(0.5), 600) == [300]
    assert steps_of_cuts(Cut(0.5, delay_fraction=0), 600) == [8]
    published = steps_of_cuts(PUBLISHED, 600)
    assert (published[0], published[1], published[-1]) == (100, 120, 600)


def test_the_bare_method_is_what_cuts_at_half():
    assert low_rank_method(Cut(0.5), total_steps=600) == AdaptiveLowRank(spread=False)


def test_frozen_bases_come_with_both_repairs_or_with_none():
    found = {one.name: one.cut for one in language_variants(CONFIG)}
    repaired, plain, paper = (
        low_rank_method(found[name], total_steps=600)
        for name in ("frozen-50", "frozen-50-plain", "oialr-paper")
    )
    assert (repaired.bases, repaired.importance, repaired.core_step) == ("frozen", "loss", "auto")
    assert (plain.bases, plain.importance, plain.core_step) == ("frozen", "weight", 1.0)
    assert paper == AdaptiveLowRank.published(
        delay_steps=100, every_steps=20, rank_rtol=0.15, layer_fraction=0.1
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (TrainingConfig, {"betas": (0.9, 1.0)}, "must be two numbers"),
        (TrainingConfig, {"steps": 0}, "at least 1"),
        (TrainingConfig, {"clip_norm": 0.0}, "use null for no clipping"),
        (TrainingConfig, {"lr": 0.0}, "must be positive"),
        (BranchOptim, {"teacher_share": 0.0}, r"must lie in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        kind(**changes)


def test_the_network_of_a_size_is_made_without_drawing():
    before = torch.get_rng_state()
    numbers_of(CONFIG.model)
    assert torch.equal(torch.get_rng_state(), before)
