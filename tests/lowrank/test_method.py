"""``AdaptiveLowRank`` on a run: its schedule, its account of itself, and what it refuses."""

from __future__ import annotations

import json
import logging
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from lowrank.nets import (
    Everything,
    as_published,
    attached,
    batch,
    events,
    everything_loss,
    filled,
    mlp,
    through_file,
    train,
    weights,
)
from orthotrain import AdaptiveLowRank, attach
from orthotrain.diagnostics import BasisStability
from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.layers import LowRankLinear
from orthotrain.lowrank import compress, load, look, save, to_dense
from reference.matrices import from_spectrum


def with_spectra(*spectra, width=10):
    """Linear layers with chosen singular values."""
    model = filled(nn.Sequential(*(nn.Linear(width, width) for _ in spectra)))
    with torch.no_grad():
        for i, (layer, s) in enumerate(zip(model, spectra, strict=True)):
            layer.weight.copy_(from_spectrum(s, width, width, seed=10 * i))
    return model


def still(model):
    """An optimizer that changes nothing."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def ranks_after(model, steps, **settings):
    optimizer, handle = attached(model, still(model), **settings)
    history = []
    for step in range(steps):
        train(model, optimizer, [step])
        history.append([row.rank for row in handle.summary().rows])
    return history


# --- the schedule ---------------------------------------------------------------------------------


def test_the_switch_and_updates_count_optimizer_steps():
    model = mlp(10)
    optimizer, handle = attached(model, delay_steps=3, every_steps=4)
    train(model, optimizer, range(12))
    assert [r["step"] for r in events(handle, "update")] == [3, 7, 11]
    assert {r["step"] for r in events(handle, "switch")} == {3}


def test_updates_reach_from_the_last_layer_to_the_first():
    spectrum = [10.0] * 5 + [0.1] * 5
    model = with_spectra(*[spectrum] * 4)
    history = ranks_after(
        model, 5, delay_steps=1, every_steps=1, layer_fraction=0.1, only_if_cheaper=False
    )
    assert history == [
        [10, 10, 10, 5],
        [10, 10, 5, 5],
        [10, 5, 5, 5],
        [5, 5, 5, 5],
        [5, 5, 5, 5],
    ]


def test_a_layer_stays_dense_until_its_rank_pays_and_says_what_is_planned():
    shallow, deep = [10.0] * 8 + [0.1] * 2, [10.0] * 3 + [0.1] * 7
    model = with_spectra(shallow, deep, deep)
    optimizer, handle = attached(
        model, still(model), delay_steps=1, every_steps=1, only_if_cheaper=True, max_drop=0.4,
        layer_fraction=0.1,
    )  # fmt: skip
    train(model, optimizer, range(2))
    first, second, third = handle.summary().rows
    assert (first.form, first.rank, first.note) == ("dense", None, "")  # not reached yet
    assert (second.form, second.note) == (
        "dense",
        "rank 6 would not be cheaper than dense yet",
    )  # after one update
    assert third.form == "factored"  # 10, 6, then 4: below 0.535 of 10
    assert third.rank == 4
    assert type(model[0]) is nn.Linear
    train(model, optimizer, range(2))
    rows = handle.summary().rows
    assert [row.rank for row in rows] == [None, 3, 3]
    assert rows[0].note == "rank 8 would not be cheaper than dense yet"
    assert [r["layer"] for r in events(handle, "switch")] == ["2", "1"]


def test_a_layer_that_stays_dense_is_never_decomposed_in_full(monkeypatch):
    decompositions = []
    monkeypatch.setattr(look, "leading", lambda site, _: decompositions.append(site.name))
    model = with_spectra([10.0] * 10, [10.0] * 10)
    optimizer, handle = attached(
        model, still(model), delay_steps=1, every_steps=1, only_if_cheaper=True
    )
    train(model, optimizer, range(4))
    assert len(events(handle, "update")) == 4
    assert decompositions == []
    assert "rank 10 would not be cheaper than dense yet" in str(handle.summary())


@pytest.mark.parametrize("bases", ["frozen", "trained"])
def test_only_a_layer_that_is_cut_is_decomposed_and_turned(monkeypatch, bases):
    decompositions, original = [], look.leading
    model = with_spectra([10.0] * 10, [10.0] * 6 + [0.1] * 4)
    optimizer, handle = attached(
        model, still(model), delay_steps=1, every_steps=1, rank_rtol=0.5, max_drop=0.2, bases=bases
    )
    monkeypatch.setattr(
        look, "leading", lambda site, k: decompositions.append((site.name, k)) or original(site, k)
    )
    train(model, optimizer, range(1))
    kept = model[0].pair if bases == "trained" else model[0].core
    before = (kept.clone(), kept.data_ptr())
    train(model, optimizer, range(3))
    assert decompositions == [("0", 10), ("1", 8), ("1", 7), ("1", 6)]
    assert [(r["layer"], r["rank"]) for r in events(handle, "turn")] == [("1", 7), ("1", 6)]
    assert torch.equal(kept, before[0])
    assert kept.data_ptr() == before[1]
    assert [r["changed"] for r in events(handle, "update")] == [2, 1, 1, 0]


def test_watching_and_cutting_go_together():
    model = mlp(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = as_published(delay_steps=2, every_steps=2, rank_rtol=0.3, only_if_cheaper=False)
    handle = attach(model, optimizer, BasisStability(every_steps=1), method)
    train(model, optimizer, range(6))
    watched = [r for r in handle.records if r["method"] == "basis_stability"]
    by_step = {r["step"]: r["rank"] for r in watched if r["layer"] == "2"}
    switched = next(r["rank"] for r in events(handle, "switch") if r["layer"] == "2")
    assert by_step[2] == switched  # watching comes after the structure has changed
    assert all(-1 <= r["stability"] <= 1 + 1e-9 for r in watched)


def test_no_delay_switches_when_attached_and_goes_on_adapting():
    model = with_spectra([10.0] * 2 + [0.1] * 8, [10.0] * 2 + [0.1] * 8)
    optimizer, handle = attached(
        model, still(model), delay_steps=0, every_steps=2, layer_fraction=0.5
    )
    assert [row.rank for row in handle.summary().rows] == [10, 5]
    train(model, optimizer, range(4))
    assert [row.rank for row in handle.summary().rows] == [3, 2]
    assert [r["step"] for r in events(handle, "update")] == [0, 2, 4]


def test_with_auto_each_layer_switches_once_its_own_basis_has_settled():
    model = mlp(8, depth=2)
    quiet, busy = model[0], model[2]
    optimizer = torch.optim.SGD(
        [{"params": quiet.parameters(), "lr": 0.0}, {"params": busy.parameters(), "lr": 0.0}]
    )
    _, handle = attached(model, optimizer, delay_steps="auto", every_steps=2)
    skew = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    skew = skew - skew.mT
    switched = {}
    for step in range(24):
        train(model, optimizer, [step])
        # The basis turns faster and faster at first, then less and less.
        angle = 0.02 * step if step < 8 else 0.16 * 0.7 ** (step - 8)
        if type(busy) is nn.Linear:
            with torch.no_grad():
                busy.weight.copy_(torch.linalg.matrix_exp(angle * skew) @ busy.weight)
        for row in handle.summary().rows:
            if row.rank is not None:
                switched.setdefault(row.name, handle.run.step)
    assert switched["0"] == 8  # three points of stability need four checks
    assert switched["2"] > 12
    assert [r["step"] for r in events(handle, "switch")] == sorted(switched.values())
    layers = handle.state_dict()["methods"]["adaptive_low_rank"]["layers"]
    assert all(layer["basis"] is None for layer in layers.values())  # not needed any more


@pytest.mark.parametrize("delay", [0, 2, "auto"])
def test_a_model_that_is_low_rank_already_is_cut_on(delay):
    model = with_spectra([10.0] * 2 + [0.5] * 8, [10.0] * 2 + [0.5] * 8)
    compress(model, rank_rtol=0.01, only_if_cheaper=False)
    assert model[0].rank == 10
    optimizer, handle = attached(model, still(model), delay_steps=delay, every_steps=2)
    train(model, optimizer, range(6))
    assert model[1].rank == 2
    assert events(handle, "turn")
    assert not events(handle, "switch")


def test_energy_and_budget_rules_reach_their_targets():
    spectrum = torch.logspace(1, -1, 20, dtype=torch.float64)
    total = spectrum.square().sum()
    model = with_spectra(spectrum, spectrum, width=20)
    history = ranks_after(model, 6, delay_steps=1, every_steps=1, energy=0.99, max_drop=0.3)
    final = history[-1]
    assert final == history[-2]  # the rule refers to the energy before the first cut
    for rank in final:
        assert spectrum[:rank].square().sum() >= 0.99 * total
        assert spectrum[: rank - 1].square().sum() < 0.99 * total

    model = with_spectra(spectrum, spectrum, width=20)
    optimizer, handle = attached(
        model, still(model), delay_steps=1, every_steps=1, stored_budget=0.6, only_if_cheaper=True
    )
    train(model, optimizer, range(6))
    assert 0.5 < handle.summary().total.stored / handle.summary().total.dense <= 0.6


def test_a_layer_frozen_later_is_left_alone():
    model = with_spectra([10.0] * 2 + [0.1] * 8, [10.0] * 2 + [0.1] * 8)
    optimizer, handle = attached(model, still(model), delay_steps=2, every_steps=1)
    train(model, optimizer, range(1))
    model[1].weight.requires_grad_(False)
    train(model, optimizer, range(4))
    rows = handle.summary().rows
    assert type(model[1]) is nn.Linear
    assert (rows[1].note, rows[1].trainable, rows[1].stored) == ("frozen", 0, 100)
    assert rows[0].rank < 10
    model[0].core.requires_grad_(False)
    rank = rows[0].rank
    train(model, optimizer, range(3), loss_of=lambda m, s: (m(batch(s, 4, 10)) ** 2).mean())
    row = handle.summary().rows[0]
    assert (row.rank, row.trainable, row.stored) == (rank, 0, rank * (20 + rank))
    assert handle.summary().total.trainable == 20  # the biases
    assert handle.summary().total.dense == 220


def test_groups_with_their_own_settings_stay_as_they_are():
    model = mlp(10)
    optimizer = torch.optim.AdamW(
        [
            {"params": [m.weight for m in model if isinstance(m, nn.Linear)], "weight_decay": 0.1},
            {"params": [m.bias for m in model if isinstance(m, nn.Linear)], "weight_decay": 0.0},
        ],
        lr=0.02,
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
    attached(model, optimizer, rank_rtol=0.3)
    before = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    for step in range(7):
        train(model, optimizer, [step])
        scheduler.step()
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == before
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["params"][0] is model[0].core
    assert model[0].rank < 10


@pytest.mark.parametrize("mode", ["rotate", "slice", "reset"])
def test_optimizer_state_follows_in_each_mode(mode):
    model = mlp(10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
    attached(model, optimizer, rank_rtol=0.9, optimizer_state=mode, max_drop=0.2)
    train(model, optimizer, range(4))
    assert model[4].rank < 10
    state = optimizer.state.get(model[4].core)
    assert bool(state) == (mode != "reset")
    if state:
        assert state["exp_avg"].shape == (model[4].rank,) * 2
        assert state["step"] == 4
    train(model, optimizer, range(4, 7))


def test_query_key_and_value_may_share_one_basis():
    model = filled(Everything())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    _, handle = attached(model, optimizer, rank_rtol=0.3, shared_attention_basis=True)
    train(model, optimizer, range(7), loss_of=everything_loss)
    attention = model.encoder.self_attn
    u, core, vh = attention.factors("in_proj_weight")
    assert (u.shape[0], core.ndim, vh.shape[1]) == (48, 2, 16)
    row = next(row for row in handle.summary().rows if row.name.endswith("in_proj_weight"))
    assert (row.rank, row.trainable) == (len(core), core.numel())
    x = Everything.batch(0)
    expected = model(x).detach()
    torch.testing.assert_close(to_dense(model)(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_switch_and_train(dtype):
    model = mlp(16, dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    attached(model, optimizer, rank_rtol=0.3)
    train(model, optimizer, range(7))
    assert model[0].rank < 16
    assert {t.dtype for t in model.state_dict().values()} == {dtype}
    assert all(p.isfinite().all() for p in model.parameters())


def test_identities_hooks_and_references_survive():
    model = mlp(10)
    layer, weight, bias = model[0], model[0].weight, model[0].bias
    shapes = []
    layer.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    layer.custom = "kept"
    optimizer, _ = attached(model, rank_rtol=0.3)
    train(model, optimizer, range(5))
    assert model[0] is layer
    assert layer.core is weight
    assert layer.bias is bias
    assert layer.custom == "kept"
    assert len(shapes) == 5
    assert isinstance(layer, nn.Linear)
    assert layer.weight.shape == (10, 10)


def test_detached_layers_stay_and_nothing_changes_any_more():
    model = mlp(10)
    optimizer, handle = attached(model, rank_rtol=0.3, max_drop=0.1)
    train(model, optimizer, range(3))
    rank = model[4].rank
    handle.detach()
    train(model, optimizer, range(3, 12))
    assert model[4].rank == rank
    assert handle.summary().rows[-1].rank == rank
    assert not any(m._load_state_dict_pre_hooks for m in model.modules())


def test_steps_called_by_hand_do_the_same():
    automatic, by_hand = mlp(10), mlp(10)
    optimizer, _ = attached(automatic, rank_rtol=0.3)
    train(automatic, optimizer, range(7))
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    method = as_published(
        delay_steps=2, every_steps=2, rank_rtol=0.3, layer_fraction=1.0, dense_last=False,
        only_if_cheaper=False,
    )  # fmt: skip
    handle = attach(by_hand, optimizer, method, auto=False)
    for step in range(7):
        train(by_hand, optimizer, [step])
        handle.step()
    for key, value in automatic.state_dict().items():
        assert torch.equal(by_hand.state_dict()[key], value)


# --- the guard ------------------------------------------------------------------------------------


def run_with_losses(jump):
    """Updates of one layer every 10 steps; each number of its rank cut raises the loss."""
    model = with_spectra([10.0] * 10, [10.0 / 2**i for i in range(10)])
    optimizer, handle = attached(
        model,
        still(model),
        delay_steps=10,
        every_steps=10,
        rank_rtol=0.05,
        max_drop=0.2,
        skip=["0"],
    )
    level, cuts = 1.0, []
    for step in range(70):
        handle.observe(level + 0.01 * math.sin(7 * step))
        before = getattr(model[1], "rank", 10)
        train(model, optimizer, [step])
        if getattr(model[1], "rank", 10) < before:
            cuts.append(handle.run.step)
            level += jump
    return cuts, events(handle, "loss_jump"), handle.summary().notes


def test_a_cut_that_makes_the_loss_jump_is_reported_and_the_next_one_waits():
    cuts, jumps, notes = run_with_losses(jump=1.0)
    # After the first cut that hurt one update is sat out, after the second one two.
    assert cuts == [10, 30, 60]
    assert [(r["step"], r["layer"], r["wait_updates"]) for r in jumps] == [
        (20, "1", 1), (40, "1", 2), (70, "1", 4),
    ]  # fmt: skip
    assert "1: 3 of its cuts made the loss jump, next cuts delayed" in notes


def test_cuts_without_a_jump_are_not_delayed():
    cuts, jumps, notes = run_with_losses(jump=0.0)
    assert cuts == [10, 20, 30, 40]
    assert not jumps
    assert not any("jump" in note for note in notes)


def test_a_loss_never_shown_is_said_so():
    model = mlp(10)
    optimizer, handle = attached(model)
    assert not any("no training loss" in note for note in handle.summary().notes)
    train(model, optimizer, range(3))
    assert any("handle.observe(loss)" in note for note in handle.summary().notes)
    handle.observe(1.0)
    assert not any("no training loss" in note for note in handle.summary().notes)


# --- its account of itself ------------------------------------------------------------------------


def test_low_rank_layers_without_an_update_are_pointed_out():
    """A resume that forgot the handle's state starts its schedule anew; the summary says so."""
    model = compress(filled(mlp()), rank_rtol=0.5, only_if_cheaper=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = as_published(delay_steps=2, every_steps=2)
    handle = attach(model, optimizer, method)
    assert "handle.load_state_dict takes back its schedule" in str(handle.summary())
    dense = filled(mlp())
    fresh = attach(dense, torch.optim.SGD(dense.parameters(), lr=0.1), method)
    assert "takes back its schedule" not in str(fresh.summary())


def test_rows_and_totals_count_what_is_there():
    model = filled(Everything())
    dense = sum(p.numel() for p in model.parameters())
    optimizer, handle = attached(model, rank_rtol=0.3, dense_last=True, skip=["stem"])
    train(model, optimizer, range(5), loss_of=everything_loss)
    summary = handle.summary()
    names = [row.name for row in summary.rows]
    assert names == [
        "grouped", "line", "encoder.self_attn.in_proj_weight", "encoder.self_attn.out_proj",
        "encoder.linear1", "encoder.linear2", "shared", "tied.0",
    ]  # fmt: skip
    for row in summary.rows:
        name = row.name.removesuffix(".in_proj_weight")
        module = model.get_submodule(name)
        weight = "in_proj_weight" if name != row.name else "weight"
        u, core, vh = module.factors(weight)
        assert row.rank == core.shape[-1]
        assert row.trainable == core.numel()
        assert row.stored == u.numel() + core.numel() + vh.numel()
        assert row.dense == math.prod(row.shape)
        larger = ", stores more than dense" if row.stored > row.dense else ""
        assert row.note == "since step 2" + larger
    own = {id(t): t for t in (*model.parameters(), *model.buffers())}
    assert summary.total.stored == sum(t.numel() for t in own.values())
    assert summary.total.trainable == sum(p.numel() for p in model.parameters())
    assert summary.total.dense == dense
    assert summary.total.weight_bytes == 8 * summary.total.stored
    assert "encoder.linear1" in str(summary)


def test_records_are_plain_and_tell_every_change():
    model = mlp(10)
    optimizer, handle = attached(model, rank_rtol=0.3, layer_fraction=0.5)
    told = []
    handle.on_record(told.append)
    train(model, optimizer, range(5))
    assert told == handle.records
    for record in handle.records:
        assert json.loads(json.dumps(record)) == record
        assert record["method"] == "adaptive_low_rank"
    switch = events(handle, "switch")[0]
    assert set(switch) == {
        "step", "method", "event", "layer", "rank", "rank_before", "full_rank", "kept_energy",
    }  # fmt: skip
    update = events(handle, "update")[-1]
    assert update["update"] == 2
    assert update["changed"] == update["cut"] == 1  # the other one keeps its rank
    assert update["seconds"] > 0


def test_the_plan_says_when_layers_switch_and_when_all_are_reached(caplog):
    with caplog.at_level(logging.INFO, logger="orthotrain"):
        model = mlp(6, depth=12)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = as_published(delay_steps=100, every_steps=10, skip=["0"])
        handle = attach(model, optimizer, method, total_steps=150)
    lines = handle.plan.splitlines()
    assert lines == [
        "10 layers can become low-rank, 2 stay as they are",
        "layers switch from step 100 on, each where its rank makes it cheaper than dense; "
        "an update every 10 steps",
        "until then, training needs the memory of dense training: that is the peak",
        "update 10, after step 190, is the first to reach every layer",
        "the run ends at step 150: only 6 of 10 are reached",
        "the 6 updates of the run leave at least 1.56 % of a rank",
    ]
    assert [record.message for record in caplog.records] == lines
    model = mlp(6)
    _, handle = attached(model, delay_steps="auto", every_steps=7)
    assert "once its basis settles, checked every 7 steps" in handle.plan


def test_a_run_in_which_no_rank_pays_says_so():
    def notes(**settings):
        model = mlp(8)
        optimizer, handle = attached(model, delay_steps=2, every_steps=1, rank_rtol=0.0, **settings)
        before = handle.summary().notes
        train(model, optimizer, range(3))
        return before, handle.summary().notes, handle.plan

    before, after, plan = notes(only_if_cheaper=True)
    assert not any("no layer is low-rank" in note for note in before)
    assert any("no layer is low-rank after update 2" in note for note in after)
    assert "layers switch from step 2 on, each where its rank" in plan
    _, after, plan = notes(only_if_cheaper=False)
    assert not any("no layer is low-rank" in note for note in after)
    assert "all layers switch after step 2" in plan


def test_random_state_outside_is_untouched(tmp_path):
    python, numpy, ours = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    model = filled(Everything())
    optimizer, handle = attached(model, delay_steps=2, every_steps=1, rank_rtol=0.3)
    train(model, optimizer, range(5), loss_of=everything_loss)
    state = through_file([model.state_dict(), handle.state_dict()])
    built = torch.get_rng_state()  # building a network draws its initial weights
    model.load_state_dict(state[0])
    handle.load_state_dict(state[1])
    compress(model, rank_rtol=0.5)
    save(model, tmp_path / "model")
    load(model, tmp_path / "model")
    str(handle.summary())
    assert torch.equal(torch.get_rng_state(), built)
    torch.set_rng_state(ours)
    fresh = torch.get_rng_state()
    filled(Everything())
    assert torch.equal(built, torch.get_rng_state())
    assert not torch.equal(built, fresh)
    torch.set_rng_state(ours)
    assert random.getstate() == python
    assert all(map(np.array_equal, np.random.get_state()[1:2], numpy[1:2]))  # noqa: NPY002


# --- what bad input gets --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [set, frozenset, tuple, list])
def test_layers_are_named_in_any_collection(kind):
    model = mlp(10)
    method = as_published(delay_steps=2, every_steps=2, skip=kind(["2", "0"]))
    # Alike in all processes, whose sets have orders of their own.
    assert method.skip == (("0", "2") if kind in (set, frozenset) else ("2", "0"))
    compress(model, energy=0.5, only=kind(["4"]), only_if_cheaper=False)
    assert [type(layer) for layer in model[::2]] == [nn.Linear, nn.Linear, LowRankLinear]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delay_steps": -1}, "delay_steps .* 0 or more, got -1"),
        ({"delay_steps": 2.5}, "delay_steps .* got 2.5"),
        ({"delay_steps": "soon"}, "delay_steps .* got 'soon'"),
        ({"every_steps": 0}, "every_steps .* 1 or more, got 0"),
        ({"every_steps": True}, "every_steps"),
        ({"rank_rtol": 1.0}, r"rank_rtol.* \[0, 1\), got 1.0"),
        ({"rank_rtol": -0.1}, "rank_rtol"),
        ({"rank_rtol": math.nan}, "rank_rtol"),
        ({"rank_rtol": "1e-1"}, "rank_rtol .* got '1e-1'"),  # what YAML makes of 1e-1
        ({"energy": 0.0}, r"energy.* \(0, 1\]"),
        ({"stored_budget": 1.5}, "stored_budget"),
        ({"energy": 0.9, "stored_budget": 0.5}, "one rank rule"),
        ({"layer_fraction": 0.0}, "layer_fraction"),
        ({"max_drop": 0.0}, "max_drop"),
        ({"min_rank_fraction": 1.0}, "min_rank_fraction"),
        ({"optimizer_state": "keep"}, "optimizer_state .*rotate.*slice.*reset.*got 'keep'"),
        ({"skip": "head"}, "skip to be a collection"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        as_published(**{"delay_steps": 1, "every_steps": 1} | settings)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("delay", "total", "fits"),
    [(10, 10, False), (10, 11, True), ("auto", 8, False), ("auto", 9, True)],
)
def test_a_switch_beyond_the_end_of_the_run_is_refused(delay, total, fits):
    model = mlp(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = as_published(delay_steps=delay, every_steps=2)
    if fits:
        attach(model, optimizer, method, total_steps=total)
        return
    with pytest.raises(ConfigError, match=f"The run has {total} steps"):
        attach(model, optimizer, method, total_steps=total)


@pytest.mark.bad_input
def test_two_methods_may_not_change_the_shape_of_one_weight():
    model = mlp(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = AdaptiveLowRank(rank_rtol=0.3, delay_steps=2, every_steps=2, only=["0", "2"])
    second = AdaptiveLowRank(rank_rtol=0.1, delay_steps=4, every_steps=2, only=["2", "4"])
    with pytest.raises(ConfigError, match=r"adaptive_low_rank_2 .* shape of 2 .*only= or skip="):
        attach(model, optimizer, first, second)
    apart = AdaptiveLowRank(rank_rtol=0.1, delay_steps=4, only=["4"], dense_last=False)
    attach(model, optimizer, first, apart)


@pytest.mark.bad_input
def test_an_optimizer_without_the_models_parameters_is_refused():
    with pytest.raises(ConfigError, match="none of the parameters"):
        attached(mlp(6), torch.optim.SGD(mlp(6).parameters(), lr=0.1))
    model = mlp(6)
    biases = [m.bias for m in model if isinstance(m, nn.Linear)]
    with pytest.raises(ConfigError, match=r"0: its weight belongs to no parameter group"):
        attached(model, torch.optim.SGD(biases, lr=0.1))


@pytest.mark.bad_input
def test_an_optimizer_that_cannot_train_cores_is_refused_with_the_layer():
    model = mlp(6)
    with pytest.raises(ConfigError, match="cannot convert 0: SparseAdam"):
        attached(model, torch.optim.SparseAdam(model.parameters()))
    assert type(model[0]) is nn.Linear


def untouched(model, step):
    """A loss with zero gradients that does not look at weights."""
    return (model[0].bias * 0).sum()


@pytest.mark.bad_input
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_weight_that_is_not_finite_is_named_and_nothing_has_changed(layer):
    model = mlp(6)
    moves = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer, _ = attached(model, moves, delay_steps=2, layer_fraction=0.1, rank_rtol=0.9)
    train(model, optimizer, range(1))
    with torch.no_grad():
        model[layer].weight[1, 2] = torch.inf
    before = weights(model)
    # Only the last layer's spectrum is looked at in this update; all three are to be converted.
    with pytest.raises(NonFiniteError, match=rf"in {layer}, shape \(6, 6\)"):
        train(model, optimizer, [2], loss_of=untouched)
    assert all(type(model[i]) is nn.Linear for i in (0, 2, 4))
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())


@pytest.mark.bad_input
def test_a_failed_attach_leaves_no_trace():
    model = mlp(6)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    optimizer = still(model)
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            attached(model, optimizer, delay_steps=0)
    assert type(model[4]) is nn.Linear
    assert not any(m._load_state_dict_pre_hooks for m in model.modules())
    with torch.no_grad():
        model[0].weight[0, 0] = 0.0
    attached(model, optimizer, delay_steps=0)
    assert type(model[4]) is LowRankLinear
