"""Save, load, continue: the same bits, whenever it was saved and in whatever order it is loaded."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lowrank.nets import (
    Everything,
    attached,
    batch,
    events,
    everything_loss,
    filled,
    mlp,
    mlp_loss,
    through_file,
    train,
)
from methods.doubles import same
from orthotrain.errors import OrthotrainWarning, StateError
from orthotrain.lowrank import restore_structure

ORDERS = list(itertools.permutations(["model", "optimizer", "handle"]))
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True),
}
# The switch comes after step 3, a cut after 5 and every 2 steps from there on.
SCHEDULE = {"delay_steps": 3, "every_steps": 2, "rank_rtol": 0.2, "max_drop": 0.2}
TRAINED = {**SCHEDULE, "bases": "trained"}
LAZY = {**SCHEDULE, "only_if_cheaper": True, "max_drop": 0.5, "rank_rtol": 0.5}
# Learning so slow that bases settle at once: layers switch after step 8.
AUTO = {**SCHEDULE, "delay_steps": "auto"}
both_bases = pytest.mark.parametrize("schedule", [SCHEDULE, TRAINED], ids=["frozen", "trained"])


def tied_mlp():
    model = mlp(10)
    model[2].weight = model[0].weight
    return model


class Tagger(nn.Module):
    """An embedding and a recurrent layer, which are cut on request."""

    def __init__(self):
        super().__init__()
        self.table, self.cells = nn.Embedding(12, 10), nn.LSTM(10, 10)

    def forward(self, ids):
        return self.cells(self.table(ids))[0]


def tagger_loss(model, step):
    ids = torch.randint(12, (6, 4), generator=torch.Generator().manual_seed(step))
    return (model(ids) - ids.unsqueeze(-1).sin()).square().mean()


def start(build, make, **settings):
    model = build()
    optimizer = make(model.parameters())
    return model, *attached(model, optimizer, **settings)


def state_of(parts):
    return through_file(
        {
            name: part.state_dict()
            for name, part in zip(["model", "optimizer", "handle"], parts, strict=True)
        }
    )


def load(parts, state, order):
    targets = dict(zip(["model", "optimizer", "handle"], parts, strict=True))
    state = through_file(state)  # torch's optimizers work on in the tensors they are given
    for name in order:
        targets[name].load_state_dict(state[name])


def go_on(parts, steps, loss_of):
    model, optimizer, handle = parts
    return train(model, optimizer, steps, loss_of=loss_of, handle=handle)


CASES = {
    "momentum": (lambda: mlp(10), "momentum", SCHEDULE, mlp_loss),
    "adamw": (lambda: mlp(10), "adamw", SCHEDULE, mlp_loss),
    "fused adamw in float32": (
        lambda: mlp(10, dtype=torch.float32), "fused adamw", SCHEDULE, mlp_loss,
    ),
    "lazy": (lambda: mlp(10), "adamw", LAZY, mlp_loss),
    "auto": (lambda: mlp(10), "fused adamw", AUTO, mlp_loss),
    "tied": (tied_mlp, "adamw", SCHEDULE, mlp_loss),
    "trained bases, momentum": (lambda: mlp(10), "momentum", TRAINED, mlp_loss),
    "trained bases, fused adamw in float32": (
        lambda: mlp(10, dtype=torch.float32), "fused adamw", TRAINED, mlp_loss,
    ),
    "trained bases, lazy": (lambda: mlp(10), "adamw", {**LAZY, "bases": "trained"}, mlp_loss),
    "kinds on request, by the loss": (
        lambda: filled(Tagger()), "adamw",
        {**TRAINED, "importance": "loss", "also": ["embedding", "lstm"]}, tagger_loss,
    ),
    "trained bases, tied": (tied_mlp, "adamw", TRAINED, mlp_loss),
}  # fmt: skip


SLOW = {"kinds on request, by the loss"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES]
)
def test_saved_at_any_step_a_run_goes_on_bit_for_bit(case):
    build, optimizer_name, settings, loss_of = CASES[case]
    make = OPTIMIZERS[optimizer_name]
    last, ahead = 12, 4
    parts = start(build, make, **settings)
    loss, states = None, []
    for step in range(last):
        states.append(state_of(parts))
        loss = go_on(parts, [step], loss_of)  # its graph lives on through the next update
    assert loss.grad_fn is not None
    assert events(parts[2], "switch")
    assert any(r["rank"] < r["rank_before"] for r in parts[2].records if "rank" in r)
    for step in range(last - ahead):
        again = start(build, make, **settings)
        alive = loss_of(again[0], 0)  # a graph over the dense weights
        load(again, states[step], ORDERS[step % len(ORDERS)])
        go_on(again, range(step, step + ahead), loss_of)
        assert same(state_of(again), states[step + ahead]), step
        assert alive.grad_fn is not None


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@both_bases
def test_every_order_of_loading_around_the_switch_and_a_cut(order, schedule):
    build, make = (lambda: mlp(10)), OPTIMIZERS["fused adamw"]
    parts = start(build, make, **schedule)
    states = {}
    for step in range(8):
        states[step] = state_of(parts)
        go_on(parts, [step], mlp_loss)
    end = state_of(parts)
    for step in (2, 3, 4, 5, 6):
        again = start(build, make, **schedule)
        load(again, states[step], order)
        go_on(again, range(step, 8), mlp_loss)
        assert same(state_of(again), end), step


@both_bases
def test_every_kind_of_layer_goes_on_bit_for_bit(schedule):
    def build():
        return filled(Everything(), dtype=torch.float32)

    parts = start(build, OPTIMIZERS["fused adamw"], **schedule)
    states = {}
    for step in range(8):
        states[step] = state_of(parts)
        go_on(parts, [step], everything_loss)
    end = state_of(parts)
    for step, order in zip((1, 3, 4, 5, 6, 7), ORDERS, strict=True):
        again = start(build, OPTIMIZERS["fused adamw"], **schedule)
        load(again, states[step], order)
        go_on(again, range(step, 8), everything_loss)
        assert same(state_of(again), end), (step, order)


@both_bases
def test_a_run_can_go_back_to_its_own_earlier_state(schedule):
    parts = start(lambda: mlp(10), OPTIMIZERS["fused adamw"], **schedule)
    states = {}
    for step in range(8):
        states[step] = state_of(parts)
        go_on(parts, [step], mlp_loss)
    end = state_of(parts)
    for step in (6, 4, 1):  # to a larger core, to the full one, to dense weights
        load(parts, states[step], ORDERS[step % 6])
        assert (parts[0][0].__class__ is nn.Linear) == (step == 1)
        go_on(parts, range(step, 8), mlp_loss)
        assert same(state_of(parts), end), step


def test_with_no_delay_the_switch_is_made_when_attached_and_resumes():
    settings = {**SCHEDULE, "delay_steps": 0, "layer_fraction": 0.9}  # the first one later
    parts = start(lambda: mlp(10), OPTIMIZERS["adamw"], **settings)
    assert parts[0][0].rank == 10
    assert [r["step"] for r in events(parts[2], "update")] == [0]
    go_on(parts, range(5), mlp_loss)
    state = state_of(parts)
    go_on(parts, range(5, 9), mlp_loss)
    assert [r["step"] for r in events(parts[2], "update")] == [0, 2, 4, 6, 8]
    again = start(lambda: mlp(10), OPTIMIZERS["adamw"], **settings)
    load(again, state, ORDERS[0])
    go_on(again, range(5, 9), mlp_loss)
    assert same(state_of(again), state_of(parts))


def test_tied_weights_share_their_factors_again_after_a_load():
    parts = start(tied_mlp, OPTIMIZERS["adamw"], **SCHEDULE)
    go_on(parts, range(6), mlp_loss)
    again = start(tied_mlp, OPTIMIZERS["adamw"], **SCHEDULE)
    load(again, state_of(parts), ORDERS[0])
    first, second = again[0][0], again[0][2]
    assert first.core is second.core
    assert first.u is second.u
    assert first.vh is second.vh


# --- what does not belong together never meets in a step ------------------------------------------


@pytest.mark.bad_input
def test_optimizer_state_of_cores_on_dense_weights_is_refused_at_the_step():
    parts = start(lambda: mlp(10), OPTIMIZERS["fused adamw"], **SCHEDULE)
    go_on(parts, range(6), mlp_loss)
    state = state_of(parts)
    again = start(lambda: mlp(10), OPTIMIZERS["fused adamw"], **SCHEDULE)
    again[1].load_state_dict(state["optimizer"])
    with pytest.raises(StateError, match="exp_avg"):
        go_on(again, [0], mlp_loss)
    again[0].load_state_dict(state["model"])  # the order does not matter, so this repairs it
    again[2].load_state_dict(state["handle"])
    go_on(again, [0], mlp_loss)


def test_a_load_of_one_part_of_the_model_does_not_reach_the_optimizer():
    parts = start(lambda: mlp(10), OPTIMIZERS["fused adamw"], **SCHEDULE)
    model, _, _ = parts
    dense = through_file(model[0].state_dict())
    go_on(parts, range(6), mlp_loss)
    model[0].load_state_dict(dense)
    assert type(model[0]) is nn.Linear
    with pytest.warns(OrthotrainWarning, match=r"'exp_avg' \(8, 8\) float64 for \(10, 10\)"):
        go_on(parts, [6], mlp_loss)


@pytest.mark.bad_input
@pytest.mark.parametrize("missing", ["handle", "handle and optimizer"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("steps", [2, 6])
def test_a_resumed_run_without_the_state_of_its_handle_is_refused(missing, optimizer, steps):
    parts = start(lambda: mlp(10), OPTIMIZERS[optimizer], **SCHEDULE)
    go_on(parts, range(steps), mlp_loss)
    state = state_of(parts)
    again = start(lambda: mlp(10), OPTIMIZERS[optimizer], **SCHEDULE)
    again[0].load_state_dict(state["model"])
    if missing == "handle":
        again[1].load_state_dict(state["optimizer"])
    elif steps == 2:
        return  # weights of a dense model: perhaps a pretrained one
    before = [p.detach().clone() for p in again[0].parameters()]
    for _ in range(2):
        with pytest.raises(StateError, match=r"add handle\.load_state_dict\("):
            go_on(again, [steps], mlp_loss)
    assert all(torch.equal(p, b) for p, b in zip(again[0].parameters(), before, strict=True))
    again[2].load_state_dict(state["handle"])
    go_on(again, [steps], mlp_loss)
    assert again[2].run.step == steps + 1


def test_state_of_a_run_that_has_not_begun_may_be_loaded():
    """As Accelerate does where it prepares an optimizer."""
    parts = start(lambda: mlp(10), lambda p: torch.optim.Adagrad(p, lr=0.01), **SCHEDULE)
    assert parts[1].state
    parts[1].load_state_dict(parts[1].state_dict())
    go_on(parts, [0], mlp_loss)


def test_a_state_that_is_loaded_before_attach_or_in_the_middle_is_taken():
    parts = start(lambda: mlp(10), OPTIMIZERS["adamw"], **SCHEDULE)
    go_on(parts, range(6), mlp_loss)
    state = state_of(parts)
    parts[1].load_state_dict(state["optimizer"])  # as a loop that goes back a few steps does
    go_on(parts, [6], mlp_loss)
    model = restore_structure(mlp(10), state["model"])
    model.load_state_dict(state["model"])
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    optimizer.load_state_dict(state["optimizer"])
    again = (model, *attached(model, optimizer, **SCHEDULE))
    # A second stage begins like this, and so does a resume that forgets the handle's state.
    with pytest.warns(OrthotrainWarning, match=r"starts anew on 0, .* for 7 steps.*handle.load_st"):
        go_on(again, [6], mlp_loss)
    assert again[2].run.step == 1
    go_on(again, [7], mlp_loss)


def test_shapes_are_checked_after_every_resize(monkeypatch):
    parts = start(lambda: mlp(10), OPTIMIZERS["fused adamw"], **SCHEDULE)
    monkeypatch.setattr("orthotrain.lowrank.change.resize", lambda *args, **options: [])
    go_on(parts, range(2), mlp_loss)
    with pytest.raises(StateError, match=r"shape \(8, 8\), its 'exp_avg' \(10, 10\)"):
        go_on(parts, [2], mlp_loss)  # by the update itself, whose step has ended
    assert parts[2].run.step == 3


@pytest.mark.bad_input
def test_state_of_other_layers_is_refused():
    parts = start(lambda: mlp(10), OPTIMIZERS["adamw"], **SCHEDULE)
    other = start(lambda: mlp(10, depth=4), OPTIMIZERS["adamw"], **SCHEDULE)
    with pytest.raises(StateError, match="same 4 layers"):
        other[2].load_state_dict(parts[2].state_dict())


@pytest.mark.bad_input
@pytest.mark.parametrize("steps", [0, 1, 4], ids=["before", "watched", "low-rank"])
@pytest.mark.parametrize("order", [("model", "handle"), ("handle", "model")])
@pytest.mark.parametrize(
    ("narrower", "missing"),
    [
        ({"skip": ["2"]}, ["2"]),
        ({"only": ["0"]}, ["2", "4", "6"]),
        ({"max_aspect": 1.5}, ["4"]),
        ({"dense_first": True}, ["0"]),
        ({"also": []}, ["6"]),
    ],
)
def test_narrower_settings_than_those_of_the_state_are_refused(steps, order, narrower, missing):
    def build():
        layers = [nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 12)]
        return filled(nn.Sequential(*layers, nn.Tanh(), nn.LSTM(12, 12)))

    def loss_of(model, step):
        return model(batch(step, 8, 6))[0].square().mean()

    wide = {"importance": "input", "also": ["lstm"], "delay_steps": 2, "every_steps": 2}
    parts = start(build, OPTIMIZERS["adamw"], **wide)
    go_on(parts, range(steps), loss_of)
    state = state_of(parts)
    again = start(build, OPTIMIZERS["adamw"], **wide | narrower)
    told = rf"differ in \['{missing[0]}.*skip, only, also, max_aspect, dense_first, dense_last"
    with pytest.raises(StateError, match=told):
        load(again, state, order)


def test_a_layer_that_is_frozen_since_is_left_out_of_what_was_seen():
    def build(frozen=False):
        model = mlp(10)
        model[2].requires_grad_(not frozen)
        return model

    parts = start(build, OPTIMIZERS["adamw"], **SCHEDULE, importance="input")
    go_on(parts, range(2), mlp_loss)
    again = start(lambda: build(frozen=True), OPTIMIZERS["adamw"], **SCHEDULE, importance="input")
    load(again, state_of(parts), ("model", "handle"))
    go_on(again, range(2, 4), mlp_loss)
    assert "2" not in again[2].ranks


@pytest.mark.bad_input
def test_an_incomplete_layer_state_is_refused():
    _model, _optimizer, handle = start(lambda: mlp(10), OPTIMIZERS["adamw"], **SCHEDULE)
    state = handle.state_dict()
    del state["methods"]["adaptive_low_rank"]["layers"]["0"]["planned_rank"]
    with pytest.raises(StateError, match="planned_rank"):
        handle.load_state_dict(state)


def test_a_loaded_state_is_not_shared_with_the_run():
    parts = start(lambda: mlp(10), OPTIMIZERS["adamw"], **AUTO)
    go_on(parts, range(6), mlp_loss)
    state = parts[2].state_dict()
    kept = through_file(state)
    again = start(lambda: mlp(10), OPTIMIZERS["adamw"], **AUTO)
    again[2].load_state_dict(state)
    go_on(again, range(6, 12), mlp_loss)
    assert same(state, kept)


def test_a_state_from_before_data_decided_is_still_read():
    """It has no statistics, no pending update and no list of unseen layers."""
    parts = start(lambda: mlp(10), OPTIMIZERS["adamw"], **SCHEDULE)
    go_on(parts, range(6), mlp_loss)
    states = [state_of(parts), state_of(parts)]
    older = states[1]["handle"]["methods"]["adaptive_low_rank"]
    for key in ("statistics", "pending", "unseen"):
        del older[key]
    ended = []
    for state in states:
        again = start(lambda: mlp(10), OPTIMIZERS["adamw"], **SCHEDULE)
        load(again, state, ORDERS[0])
        go_on(again, range(6, 10), mlp_loss)
        ended.append(state_of(again))
    assert same(*ended)
