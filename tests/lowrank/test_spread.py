"""An update spread over steps is the same update, a layer at a time."""

from __future__ import annotations

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
from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.lowrank import look

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
    for name in ("decomposed_in", "decomposed", "spectrum"):
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


def test_updates_need_room():
    model = mlp(10, depth=4)
    for settings, total, message in (
        ({"every_steps": 9}, None, "needs 8 steps per update of 4 layers and 8 to watch"),
        ({"every_steps": 40}, 10, "ends its first update after step 11, the run has 10 steps"),
    ):
        method = as_published(**{**SETTINGS, "importance": "loss", "dense_last": False, **settings})
        with pytest.raises(ConfigError, match=message):
            attach(model, still(model), method, total_steps=total)


def test_a_weight_that_is_not_finite_is_named_before_any_layer_changes():
    model = mlp(10)
    optimizer, _ = attached(model, still(model), **SETTINGS, importance="weight")
    train(model, optimizer, range(3))
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="in 2, shape"):
        train(model, optimizer, range(3, 10))
    assert not any(hasattr(layer, "rank") for layer in model)
