from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from lab.experiments.language.tiny import tiny_text
from lab.experiments.rivals.tiny import (
    CONFIG,
    OURS,
    SETTINGS,
    STEPS,
    train_here,
    trainer_of,
    vit_of,
)
from lab.run.tiny import assert_goes_on, assert_same_bits
from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.lab.experiments.rivals.layers import linear_layers
from orthotrain.lab.experiments.rivals.low_rank_updates import put_updates, relora_like, rhythm
from orthotrain.lab.experiments.rivals.projected_gradient import ProjectedAdamW, galore_like
from orthotrain.lab.experiments.rivals.two_factors import UniformShare
from orthotrain.lab.run.record import SeedFolder, read_json
from orthotrain.lab.run.restore import read_network
from orthotrain.lowrank import AdaptiveLowRank
from orthotrain.methods import attach
from orthotrain.methods.processes import Processes
from orthotrain.methods.protocol import Run


def stepped(trainer, count):
    for _ in range(count):
        list(trainer.step().lines)
    return trainer


def total(trainer):
    return trainer.handle.summary().total


@pytest.mark.parametrize("make", [trainer_of, vit_of])
def test_every_rival_begins_with_the_same_weights_and_data(make):
    dense = make("dense")
    first = dense.batches.next_batch()
    for name in OURS:
        rival = make(name)
        if name == "narrow-50":
            continue
        assert torch.equal(rival.batches.next_batch()[0], first[0])
        if name != "fixed-rank":  # cut at once
            known = {k.replace(".base_layer", ""): v for k, v in rival.model.state_dict().items()}
            assert_same_bits({k: known[k] for k in dense.model.state_dict()},
                             dict(dense.model.state_dict()))  # fmt: skip


@pytest.mark.slow
def test_sizes_are_what_each_rival_promises():
    dense = total(stepped(trainer_of("dense"), STEPS))
    found = {name: total(stepped(trainer_of(name), STEPS)) for name in OURS}
    for name in ("fixed-rank", "pufferfish-like", "default"):
        assert 0.45 * dense.stored < found[name].stored <= 0.5 * dense.stored, name
        assert found[name].trainable == found[name].stored
    assert found["cuttlefish-like"].stored < dense.stored
    assert found["galore-like"].stored == found["relora-like"].dense == dense.stored
    assert found["galore-like"].state_bytes < 0.75 * dense.state_bytes
    assert found["relora-like"].trainable < 0.65 * dense.trainable
    assert found["relora-like"].state_bytes < 0.65 * dense.state_bytes
    assert found["oialr-paper"].trainable < dense.trainable


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("galore-like", [9]),
        ("relora-like", [13]),
        ("cuttlefish-like", [7]),
        pytest.param("relora-like", [6, 12, 18], marks=pytest.mark.slow),
        pytest.param("cuttlefish-like", [8, 13], marks=pytest.mark.slow),
        pytest.param("fixed-rank", [9], marks=pytest.mark.slow),
        pytest.param("pufferfish-like", [6, 9], marks=pytest.mark.slow),
        pytest.param("default", [13], marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, name, steps):
    assert_goes_on(partial(train_here, name=name), tmp_path, at=steps)


# --- two factors --------------------------------------------------------------------------------


def test_every_layer_keeps_the_same_share_of_its_numbers():
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 80), nn.Linear(80, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    method = AdaptiveLowRank(
        delay_steps=0, rank=UniformShare(0.5), importance="weight", spread=False
    )
    handle = attach(model, optimizer, method)
    rows = handle.summary().rows
    shares = [row.stored / row.dense for row in rows]
    assert max(shares) - min(shares) < 0.03
    assert 0.47 * handle.summary().total.dense < handle.summary().total.stored
    assert handle.summary().total.stored <= 0.5 * handle.summary().total.dense


@pytest.mark.bad_input
def test_a_share_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="nothing is left for low-rank layers; raise the share"):
        UniformShare(0.1).ranks([], min_ranks=[], other_numbers=10)
    # Told before the first step, not at the switch.
    narrow = replace(CONFIG, model=replace(CONFIG.model, width=8))
    with pytest.raises(ConfigError, match="nothing is left for low-rank layers"):
        trainer_of("pufferfish-like", config=narrow)


def test_pufferfish_begins_dense_and_is_cut_at_its_share_of_the_run():
    trainer = stepped(trainer_of("pufferfish-like"), 5)
    assert total(trainer).stored == total(trainer).dense
    list(trainer.step().lines)
    assert total(trainer).stored <= 0.5 * total(trainer).dense


# --- stable ranks -------------------------------------------------------------------------------


def test_cuttlefish_cuts_to_scaled_stable_ranks_when_they_settle():
    trainer, dense = trainer_of("cuttlefish-like"), trainer_of("dense")
    layers = linear_layers(dense.model, rival="here")

    def stable_ranks():
        values = {
            n: torch.linalg.svdvals(one.weight.detach().double()) for n, one in layers.items()
        }
        return {name: float((s / s[0]).square().sum()) for name, s in values.items()}

    first = stable_ranks()
    stepped(trainer, 7)  # the first look, after step 4, has nothing to compare with
    assert total(trainer).stored == total(trainer).dense
    stepped(trainer, 1)
    stepped(dense, 8)  # the same until the cut
    now, rows = stable_ranks(), trainer.handle.summary().rows
    cut = {row.name: row.rank for row in rows if row.rank is not None}
    assert len(cut) > 2  # the others would not be cheaper
    full = {name: min(layers[name].weight.shape) for name in cut}
    assert cut == {name: round(full[name] * now[name] / first[name]) for name in cut}
    after = total(trainer).stored
    stepped(trainer, 5)
    assert total(trainer).stored == after  # fixed after the switch


# --- low-rank updates ---------------------------------------------------------------------------


def test_updates_begin_after_the_dense_part_with_frozen_weights():
    trainer = stepped(trainer_of("relora-like"), 6)
    plain = stepped(trainer_of("dense"), 6)
    weight = trainer.model.blocks[0].up.base_layer.weight
    assert torch.equal(weight, plain.model.blocks[0].up.weight)  # dense until here
    before = weight.clone()
    read = tiny_text().train[None, :16].long()
    assert torch.equal(trainer.model(read), plain.model(read))  # the update is zero
    stepped(trainer, 5)
    assert torch.equal(weight, before)
    assert trainer.model.blocks[0].up.b.abs().max() > 0


def test_a_restart_keeps_the_function_and_begins_anew():
    trainer = stepped(trainer_of("relora-like"), 11)
    up, read = trainer.model.blocks[0].up, tiny_text().train[None, :16].long()
    seen = []
    hook = trainer.optimizer.register_step_post_hook(
        lambda *_: seen.extend((trainer.model(read), up.base_layer.weight.clone(), up.a.clone()))
    )
    trainer.optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)
    list(trainer.step().lines)  # the twelfth: merged after it
    torch.testing.assert_close(trainer.model(read), seen[0], rtol=1e-4, atol=1e-5)
    assert not torch.equal(up.base_layer.weight, seen[1])
    assert not torch.equal(up.a, seen[2])
    assert up.b.abs().max() == 0
    assert up.a not in trainer.optimizer.state
    hook.remove()
    list(trainer.step().lines)
    assert trainer.optimizer.state[up.b]["step"] == 1


def test_the_rate_rises_again_after_each_beginning():
    times = {"delay_steps": 10, "every_steps": 6, "rewarm_steps": 4}
    factors = [rhythm(step, **times) for step in (0, 9, 10, 11, 13, 15, 16, 19)]
    assert factors == [1, 1, 0.25, 0.5, 1, 1, 0.25, 1]
    assert rhythm(12, delay_steps=10, every_steps=None, rewarm_steps=0) == 1


def test_a_checkpoint_gives_the_network_with_its_updates_back(tmp_path):
    train_here(tmp_path, name="relora-like")
    again, trained = read_network(SeedFolder(tmp_path).checkpoint), trainer_of("relora-like")
    read = tiny_text().train[None, :16].long()
    stepped(trained, STEPS)
    torch.testing.assert_close(again(read), trained.model(read))
    result = read_json(SeedFolder(tmp_path).result)
    assert result["switch_step"] == STEPS // 4
    assert result["stored_folded"] == result["dense"] < result["stored"]


def test_operations_are_counted_anew_where_weights_freeze():
    trainer = stepped(trainer_of("relora-like"), 6)
    before = trainer.branching.meter.operations
    list(trainer.step().lines)
    assert trainer.branching.meter.operations - before != before / 6


# --- what a layer cannot take -------------------------------------------------------------------


@pytest.mark.bad_input
def test_a_layer_of_another_kind_is_refused_by_name():
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(8, 8, 3), nn.Linear(8, 8))
    for make in (
        lambda: galore_like(model, SETTINGS, total_steps=10, seed=0),
        lambda: put_updates(model, rank_fraction=0.5),
    ):
        with pytest.raises(ConfigError, match=r"-like takes nn.Linear alone; 1 is a Conv2d of sha"):
            make()


@pytest.mark.bad_input
def test_updates_that_would_never_be_trained_are_refused():
    for settings, said in (
        (
            {"dense_fraction": 0.999, "rewarm_fraction": 0.0},
            rf"begin at step {STEPS} of {STEPS}; need a smaller",
        ),
        ({"restarts": 17}, "the rate would rise for 2 of the 1 steps between restarts"),
    ):
        config = replace(CONFIG, rivals=replace(SETTINGS, **settings))
        with pytest.raises(ConfigError, match=said):
            trainer_of("relora-like", config=config)


@pytest.mark.bad_input
def test_updates_are_refused_where_several_processes_train():
    class Two(Processes):
        count = 2

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    (method,) = relora_like(model, SETTINGS, total_steps=10, seed=0).methods
    run = Run(model, [AdamW(model.parameters())], total_steps=10, processes=Two(None))
    with pytest.raises(ConfigError, match="start it without torchrun"):
        method.bind(run)


@pytest.mark.bad_input
def test_a_gradient_that_is_not_finite_is_told_before_its_basis_is_renewed():
    weight = nn.Parameter(torch.eye(4))
    optimizer = ProjectedAdamW([weight], ranks={weight: 2}, refresh_steps=5)
    weight.grad = torch.full((4, 4), torch.nan)
    with pytest.raises(NonFiniteError, match=r"galore-like: a gradient of shape \(4, 4\)"):
        optimizer.step()


@pytest.mark.bad_input
def test_settings_outside_their_range_are_refused():
    with pytest.raises(ConfigError, match="no layer can take a rank above its smaller side"):
        type(SETTINGS)(rank_fraction=1.5)
    with pytest.raises(ConfigError, match=r"rivals\.restarts=0 must be at least 1"):
        type(SETTINGS)(restarts=0)
