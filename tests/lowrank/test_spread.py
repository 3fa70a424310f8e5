"""An update spread over steps is the same update, a layer at a time."""

from __future__ import annotations

import copy

import pytest
import torch

from lowrank.nets import (
    Everything,
    as_published,
    attached,
    events,
    everything_loss,
    filled,
    mlp,
    mlp_loss,
    through_file,
    train,
    weights,
)
from methods.doubles import same
from orthotrain import attach
from orthotrain.errors import NonFiniteError
from orthotrain.linalg import randomized
from orthotrain.lowrank import look, update

SETTINGS = {
    "delay_steps": 3, "every_steps": 40, "energy": 0.8, "max_drop": 1.0,
    "spread": True,
}  # fmt: skip


def still(model):
    return torch.optim.SGD(model.parameters(), lr=0.0)


@pytest.mark.parametrize("importance", ["loss", "weight"])
@pytest.mark.parametrize("bases", ["trained", "frozen"])
def test_where_weights_stay_it_ends_with_the_factors_of_one_step(importance, bases):
    ended = []
    for spread in (True, False):
        model = filled(Everything())
        settings = {**SETTINGS, "importance": importance, "bases": bases, "spread": spread}
        optimizer, handle = attached(model, still(model), **settings)
        train(model, optimizer, range(40), loss_of=everything_loss)
        ended.append((weights(model), handle.summary().rows, events(handle, "update")))
    spread, whole = ended
    assert spread[0].keys() == whole[0].keys()
    for name, value in whole[0].items():
        assert torch.equal(value, spread[0][name]), name
    assert [row.rank for row in spread[1]] == [row.rank for row in whole[1]]
    for key in ("update", "changed", "cut"):
        assert [r[key] for r in spread[2]] == [r[key] for r in whole[2]]


def test_no_step_sees_or_changes_more_than_one_layer(monkeypatch):
    calls = []
    for name in ("leading_in", "leading", "spectrum"):
        then = getattr(look, name)
        monkeypatch.setattr(look, name, lambda *a, then=then: (calls.append(1), then(*a))[1])
    model = mlp(10, depth=4)
    optimizer, handle = attached(model, **SETTINGS, importance="loss")
    per_step = []
    for step in range(14):
        calls.clear()
        train(model, optimizer, [step])
        per_step.append(len(calls))
    assert per_step == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert [r["step"] for r in events(handle, "switch")] == [7, 8, 9, 10]


@pytest.mark.parametrize(("bases", "first"), [("trained", 0), ("frozen", 1)])
def test_saved_anywhere_in_it_a_run_goes_on_bit_for_bit(bases, first):
    """How an update is spread does not depend on the form: each is saved at every second step."""
    settings = {**SETTINGS, "every_steps": 14, "importance": "loss", "bases": bases}
    settings |= {"energy": 0.7, "max_drop": 0.3}

    def start():
        model = mlp(10)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return (model, *attached(model, optimizer, **settings))

    parts, states = start(), []
    for step in range(26):
        states.append(through_file({i: part.state_dict() for i, part in enumerate(parts)}))
        train(parts[0], parts[1], [step], loss_of=mlp_loss, handle=parts[2])
    last = through_file({i: part.state_dict() for i, part in enumerate(parts)})
    ranks = [r["rank"] for r in parts[2].records if r["event"] in ("switch", "turn")]
    assert len(ranks) == 6
    for step in range(first, 26, 2):
        again = start()
        for i, part in enumerate(again):
            part.load_state_dict(through_file(states[step])[i])
        train(again[0], again[1], range(step, 26), loss_of=mlp_loss, handle=again[2])
        assert same(through_file({i: part.state_dict() for i, part in enumerate(again)}), last), (
            step
        )


def test_a_cut_by_a_sketch_is_the_same_after_a_resume(monkeypatch):
    """Layers of 160: wide enough that a sketch finds the leading factors."""
    ranks, sketch = [], randomized.randomized_factors
    monkeypatch.setattr(
        randomized, "randomized_factors", lambda a, k, **g: ranks.append(k) or sketch(a, k, **g)
    )

    def start():
        model = mlp(160, depth=2, dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return (model, *attached(model, optimizer, **SETTINGS | {"energy": 0.3}, bases="trained"))

    parts = start()
    train(parts[0], parts[1], range(4))
    state = through_file({i: part.state_dict() for i, part in enumerate(parts)})
    assert not ranks
    train(parts[0], parts[1], range(4, 8))
    assert len(ranks) == 2
    assert [r["rank"] for r in events(parts[2], "switch")] == ranks
    torch.rand(7)  # whatever else was drawn
    del state[2]["methods"]["adaptive_low_rank"]["pending"]["compared"]  # older states lack it
    for order in ((0, 1, 2), (2, 1, 0)):
        again, read = start(), copy.deepcopy(state)
        for i in order:
            again[i].load_state_dict(read[i])
        train(again[0], again[1], range(4, 8))
        assert same(*({i: p.state_dict() for i, p in enumerate(each)} for each in (parts, again)))


def test_where_layers_settle_one_basis_is_compared_per_step(monkeypatch):
    compared, then = [], update.check_basis
    monkeypatch.setattr(update, "check_basis", lambda *a: (compared.append(1), then(*a))[1])
    spectra, look_at = [], look.spectrum
    monkeypatch.setattr(look, "spectrum", lambda *a: spectra.append(1) or look_at(*a))
    model = mlp(10, depth=3)
    optimizer, handle = attached(
        model, still(model), delay_steps="auto", every_steps=12, spread=True, stored_budget=0.9
    )
    per_step = []
    for step in range(58):
        before = len(compared)
        train(model, optimizer, [step])
        per_step.append(len(compared) - before)
    assert max(per_step) == 1
    assert sum(per_step) == 4 * 3
    assert len(events(handle, "switch")) == 3
    # Four comparisons settle; before, nothing was within reach and nothing was looked at.
    assert len(spectra) == 3


@pytest.mark.parametrize(
    ("settings", "total", "steps"),
    [
        ({"every_steps": 40}, None, [7, 8, 9, 10]),
        ({"every_steps": 12}, None, [5, 5, 6, 6]),  # four of twelve are left by the watch
        ({"every_steps": 9}, None, [3, 3, 3, 3]),
        ({"every_steps": 40}, 6, [4, 4, 5, 5]),  # of three steps until the end
        ({"every_steps": 40}, 4, [3, 3, 3, 3]),
    ],
)
def test_where_there_is_little_room_a_step_takes_more_than_one_layer(settings, total, steps):
    model = mlp(10, depth=4)
    method = as_published(
        **{**SETTINGS, "importance": "loss", "dense_last": False, "only_if_cheaper": False,
           "layer_fraction": 1.0, **settings}
    )  # fmt: skip
    optimizer = still(model)
    handle = attach(model, optimizer, method, total_steps=total)
    train(model, optimizer, range(total or 14))
    assert [r["step"] for r in events(handle, "switch")] == steps


def test_what_is_left_at_the_end_of_the_run_is_done_there():
    model = mlp(10, depth=4)
    method = as_published(
        delay_steps=3, every_steps=8, energy=0.5, max_drop=0.2, dense_last=False,
        only_if_cheaper=False, layer_fraction=1.0, spread=True,
    )  # fmt: skip
    optimizer = still(model)
    handle = attach(model, optimizer, method, total_steps=12)
    train(model, optimizer, range(11))
    assert "update: number 2 is on its way, step by step" in handle.summary().notes
    train(model, optimizer, [11])
    assert [r["step"] for r in events(handle, "update")] == [10, 12]
    assert {r["step"] for r in events(handle, "turn")} == {12}
    assert not any("on its way" in note for note in handle.summary().notes)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_states_are_loaded_in_any_order_in_the_middle_of_a_second_update(order):
    def start():
        model = mlp(10, depth=4)
        method = as_published(
            delay_steps=3, every_steps=8, energy=0.5, max_drop=0.2, dense_last=False,
            only_if_cheaper=False, layer_fraction=1.0, spread=True,
        )  # fmt: skip
        optimizer = still(model)
        return model, optimizer, attach(model, optimizer, method, total_steps=12)

    parts = start()
    train(parts[0], parts[1], range(11))
    assert "update: number 2 is on its way, step by step" in parts[2].summary().notes
    state = copy.deepcopy([part.state_dict() for part in parts])
    train(parts[0], parts[1], [11])
    again = start()
    for i in order:
        again[i].load_state_dict(state[i])
    train(again[0], again[1], [11])
    assert same(*({i: p.state_dict() for i, p in enumerate(each)} for each in (parts, again)))


def test_a_weight_that_is_not_finite_is_named_before_any_layer_changes():
    model = mlp(10)
    optimizer, _ = attached(model, still(model), **SETTINGS, importance="weight")
    train(model, optimizer, range(3))
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="in 2, shape"):
        train(model, optimizer, range(3, 10))
    assert not any(hasattr(layer, "rank") for layer in model)
