"""Branches, narrow rivals and frozen bases of a classifier."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lab.run.tiny import (
    CONFIG,
    TOTAL_STEPS,
    assert_goes_on,
    assert_same_bits,
    train_here,
    trainer_of,
    variant_of,
)
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.branches.method import low_rank_method
from orthotrain.lab.experiments.branches.start import Start
from orthotrain.lab.experiments.lowrank.build import method_of, own_rate
from orthotrain.lab.experiments.lowrank.config import BranchConfig, lowrank_variants
from orthotrain.lab.experiments.lowrank.networks import passes_of
from orthotrain.lab.run.record import SeedFolder, read_json, read_metrics
from orthotrain.lab.run.restore import read_network
from orthotrain.lab.run.space import own_config
from orthotrain.lowrank import AdaptiveLowRank, rate_after_cut

BRANCH_STEPS = round(0.2 * TOTAL_STEPS)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A finished dense training. Do not write into it."""
    folder = tmp_path_factory.mktemp("dense")
    train_here(folder)
    return folder


def lines_of(folder, kind):
    return [line for line in read_metrics(SeedFolder(folder).metrics) if line["kind"] == kind]


def ranks_of(folder):
    return {line["layer"]: line["rank"] for line in lines_of(folder, "rank")}


def test_the_variants_of_before_come_first_then_those_that_store_half():
    assert [one.name for one in lowrank_variants(CONFIG)] == [
        "dense", "oialr-paper", "oialr-tuned", "narrow", "branch-50", "half-50", "narrow-50",
        "narrow-50-short", "narrow-50-teacher", "frozen-50", "frozen-50-plain",
    ]  # fmt: skip


def test_what_learns_or_starts_from_another_training_needs_that_of_its_seed():
    needs = {one.name: one.needs for one in lowrank_variants(CONFIG) if one.same_seed}
    assert needs == {
        "branch-50": "dense", "narrow-50-teacher": "dense", "frozen-50-plain": "frozen-50",
    }  # fmt: skip


def test_the_cut_at_half_is_the_bare_method():
    assert method_of(variant_of("half-50"), total_steps=600) == AdaptiveLowRank(spread=False)


def test_rates_are_the_run_s_the_narrow_network_s_own_and_a_branch_follows_its_length(dense):
    narrow = ("narrow-50", "narrow-50-short", "narrow-50-teacher")
    config = replace(CONFIG, own={name: {"optim.lr": 3e-2} for name in narrow})
    own = trainer_of("branch-50", needed=dense).branching.branch
    rates = {
        name: trainer_of(
            name, config=own_config(config, name), needed=dense if needs else None
        ).settings["learning_rate"]
        for name, needs in (
            ("dense", 0), ("half-50", 0), ("narrow-50", 0), ("narrow-50-short", 0),
            ("narrow-50-teacher", 1), ("branch-50", 1),
        )
    }  # fmt: skip
    assert rates == {
        "dense": 1e-2, "half-50": 1e-2, "narrow-50": 3e-2, "narrow-50-short": 3e-2,
        "narrow-50-teacher": 3e-2,
        "branch-50": own.rate(1e-2, steps=BRANCH_STEPS, dense_steps=TOTAL_STEPS),
    }  # fmt: skip
    assert rates["branch-50"] == rate_after_cut(
        1e-2, steps=BRANCH_STEPS, dense_steps=TOTAL_STEPS,
        loss_before=own.loss_before, loss_after=own.loss_after,
    )  # fmt: skip
    start = Start(own.model, own)
    branch = own_rate(CONFIG, start, steps=20, dense_steps=100)
    assert branch.lr == own.rate(1e-2, steps=20, dense_steps=100) < 1e-2
    assert branch.min_lr == 0


def test_a_branch_starts_from_the_finished_model_and_ends_at_half_of_its_size(tmp_path, dense):
    trainer = trainer_of("branch-50", needed=dense)
    finished = read_network(SeedFolder(dense).checkpoint)
    assert_same_bits(trainer.branching.teacher.state_dict(), finished.state_dict())
    assert not torch.equal(trainer.batches.next_batch()[0], trainer_of().batches.next_batch()[0])
    result = train_here(tmp_path, name="branch-50", needed=dense)
    assert result["steps"] == BRANCH_STEPS
    assert result["stored"] <= 0.5 * result["dense"]
    assert result["compute_before"] == read_json(SeedFolder(dense).result)["compute"] > 0
    (cut,) = lines_of(tmp_path, "cut")
    assert (cut["step"], result["switch_step"]) == (1, 0)
    assert {"accuracy", "accuracy_before", "compute"} <= set(cut)
    assert lines_of(tmp_path, "step")[-1]["lr"] == 0.0


def test_a_killed_branch_goes_on_bit_for_bit(tmp_path, dense):
    config = replace(CONFIG, branch=BranchConfig(steps_fraction=0.6))
    train_in = partial(train_here, name="branch-50", needed=dense, config=config)
    assert_goes_on(train_in, tmp_path, at=[5, 9], saved=[4, 8])


def test_a_narrow_network_learns_from_the_dense_one(dense):
    trainer = trainer_of("narrow-50-teacher", needed=dense)
    images, labels = trainer.batches.next_batch()
    trainer = trainer_of("narrow-50-teacher", needed=dense)
    with torch.no_grad():
        scores, taught = trainer.model(images), trainer.branching.teacher(images)
    divergence = -(taught.softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()
    expected = (F.cross_entropy(scores, labels) + divergence) / 2
    assert trainer.step().values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_short_narrow_network_computes_as_much_as_the_branch(dense):
    short = trainer_of("narrow-50-short")
    assert short.total_steps > 0
    taught = trainer_of("narrow-50-teacher", needed=dense)
    for trainer in (short, taught):
        trainer.step()
    shape = {"image_shape": (1, 8, 8), "classes": 3, "batch": CONFIG.data.batch_size}
    narrow = replace(CONFIG.model, width=short.settings["model"]["width"])
    one = passes_of(narrow, **shape).step
    # The first layer has no gradient of its inputs, which the formula leaves out.
    assert short.branching.meter.operations == pytest.approx(one, rel=0.1)
    look = taught.branching.meter.operations - short.branching.meter.operations
    assert look == passes_of(CONFIG.model, **shape).forward


def test_plain_frozen_bases_have_the_ranks_of_the_repaired_ones(tmp_path):
    repaired, plain = tmp_path / "repaired", tmp_path / "plain"
    train_here(repaired, name="frozen-50")
    result = train_here(plain, name="frozen-50-plain", needed=repaired)
    assert ranks_of(plain) == ranks_of(repaired)
    other = read_json(SeedFolder(repaired).result)
    assert (result["stored"], result["trainable"]) == (other["stored"], other["trainable"])
    assert result["stored"] < result["dense"]
    variant = variant_of("frozen-50-plain", needed=repaired)
    method = low_rank_method(variant.cut, total_steps=TOTAL_STEPS)
    assert (method.bases, method.importance, method.core_step) == ("frozen", "weight", 1.0)


def test_the_four_of_before_are_not_looked_at_around_their_cuts(tmp_path):
    train_here(tmp_path, name="oialr-paper")
    assert lines_of(tmp_path, "cut") == []


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (BranchConfig, {"steps_fraction": 0.0}, "branch.steps_fraction=0.0 must be positive"),
        (BranchConfig, {"teacher_share": 2.0}, r"must lie in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        kind(**changes)


def test_a_branch_whose_cut_lost_nothing_stays_as_it_is(dense, monkeypatch):
    monkeypatch.setattr("orthotrain.lowrank.several_sizes.mean_loss", lambda *a: 1.0)
    trainer = trainer_of("branch-50", needed=dense)
    assert trainer.settings["learning_rate"] == 0.0
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.step()
    assert_same_bits(trainer.model.state_dict(), before)
