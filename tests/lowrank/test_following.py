"""An averaged copy of the model follows every switch and cut, and goes on averaging."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lowrank.nets import (
    Everything,
    attached,
    batch,
    everything_loss,
    filled,
    mlp,
    mlp_loss,
    through_file,
    train,
    weights,
)
from orthotrain.errors import ConfigError
from orthotrain.layers import LowRankLinear

SCHEDULE = {"delay_steps": 3, "every_steps": 2, "rank_rtol": 0.2, "max_drop": 0.2}


def averaged(model, *, use_buffers=False):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)


def go_on(model, optimizer, ema, steps, *, loss_of=mlp_loss):
    for step in steps:
        train(model, optimizer, [step], loss_of=loss_of)
        ema.update_parameters(model)


def assert_averages(ema, model, old, new):
    """Every weight of the copy is 0.9 of what it was, in the model's basis, and 0.1 of new."""
    for name, layer in model.named_modules():
        if isinstance(layer, LowRankLinear):
            twin = ema.module.get_submodule(name)
            key = f"{name}.weight"
            left, right = layer.u @ layer.u.mT, layer.vh.mT @ layer.vh
            expected = 0.9 * left @ old[key] @ right + 0.1 * new[key]
            torch.testing.assert_close(twin.weight, expected, rtol=0, atol=1e-12)
            assert torch.equal(twin.u, layer.u)
            assert torch.equal(twin.vh, layer.vh)
            assert twin.core is not layer.core
            assert twin.u is not layer.u


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_follows_switches_and_cuts(use_buffers):
    model = mlp(10)
    optimizer, handle = attached(model, **SCHEDULE)
    ema = averaged(model, use_buffers=use_buffers)
    handle.track(ema)
    x = batch(0, 4, 10)
    go_on(model, optimizer, ema, [0])  # the first update copies
    ranks = []
    for step in range(1, 10):
        old = weights(ema.module)
        go_on(model, optimizer, ema, [step])
        assert_averages(ema, model, old, weights(model))
        ranks.append(getattr(model[0], "rank", 10))
        assert ema(x).isfinite().all()
        assert not torch.equal(ema(x), model(x))
    assert ranks[0] == 10
    assert ranks[-1] < 10
    assert isinstance(ema.module[0], LowRankLinear)


def test_a_copy_made_by_hand_takes_the_projection_of_its_own_weights():
    model = mlp(10)
    optimizer, handle = attached(model, delay_steps=3, every_steps=2, rank_rtol=0.3, max_drop=1.0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5).add_(0.1)
    handle.track(twin)
    old = weights(twin)
    train(model, optimizer, range(4))
    first = model[0].rank
    assert max(first, model[2].rank) < 10
    for index in (0, 2, 4):
        layer = model[index]
        left, right = layer.u @ layer.u.mT, layer.vh.mT @ layer.vh
        expected = left @ old[f"{index}.weight"] @ right
        torch.testing.assert_close(twin[index].weight, expected, rtol=0, atol=1e-12)
        assert torch.equal(twin[index].bias, old[f"{index}.bias"])
    # u_new^T u_old core vh_old vh_new^T, for a copy that is low-rank itself.
    before = {i: [t.detach().clone() for t in twin[i].factors()] for i in (0, 2, 4)}
    train(model, optimizer, range(4, 6))
    assert model[0].rank <= first
    for index, (u, core, vh) in before.items():
        layer = model[index]
        expected = (layer.u.mT @ u) @ core @ (vh @ layer.vh.mT)
        torch.testing.assert_close(twin[index].core.detach(), expected, rtol=0, atol=1e-12)


def test_every_kind_of_layer_and_tied_weights_follow():
    model = filled(Everything())
    optimizer, handle = attached(model, **SCHEDULE)
    ema = averaged(model)
    handle.track(ema)
    go_on(model, optimizer, ema, range(9), loss_of=everything_loss)
    for own, theirs in zip(model.parameters(), ema.module.parameters(), strict=True):
        assert own.shape == theirs.shape
    assert ema.module.tied[0].core is ema.module.tied[1].core
    assert ema.module.tied[0].u is ema.module.tied[1].u
    assert ema(Everything.batch(0)).isfinite().all()


def test_a_copy_tracked_late_takes_over_the_present_structure():
    model = mlp(10)
    twin = copy.deepcopy(model)
    old = weights(twin)
    optimizer, handle = attached(model, **SCHEDULE)
    train(model, optimizer, range(5))
    handle.track(twin)
    layer = model[4]
    expected = layer.u @ layer.u.mT @ old["4.weight"] @ layer.vh.mT @ layer.vh
    torch.testing.assert_close(twin[4].weight, expected, rtol=0, atol=1e-12)


def test_a_copy_in_the_same_basis_is_left_bit_for_bit():
    model = mlp(10, dtype=torch.float32)
    optimizer, handle = attached(model, **SCHEDULE)
    train(model, optimizer, range(5))
    twin = copy.deepcopy(model)
    before = {key: value.clone() for key, value in twin.state_dict().items()}
    handle.track(twin)
    assert all(torch.equal(value, before[key]) for key, value in twin.state_dict().items())


@pytest.mark.parametrize("at", [1, 3, 4, 6])
@pytest.mark.parametrize("track_first", [True, False])
def test_an_average_resumes_bit_for_bit(at, track_first):
    def build():
        model = mlp(10, dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        ema = averaged(model)  # before attach, so it brings no hook of its own along
        _, handle = attached(model, optimizer, **SCHEDULE)
        handle.track(ema)
        return model, optimizer, ema, handle

    model, optimizer, ema, handle = build()
    go_on(model, optimizer, ema, range(at))
    parts = [model, optimizer, ema, handle]
    states = through_file([part.state_dict() for part in parts])
    go_on(model, optimizer, ema, range(at, 9))
    again = build()
    order = (2, 0, 1, 3) if track_first else (0, 1, 3, 2)
    for index in order:
        again[index].load_state_dict(states[index])
    go_on(*again[:3], range(at, 9))
    for key, value in ema.state_dict().items():
        assert torch.equal(again[2].state_dict()[key], value), key


def test_an_average_on_another_dtype_keeps_its_own():
    model = mlp(10, dtype=torch.float32)
    optimizer, handle = attached(model, **SCHEDULE)
    twin = copy.deepcopy(model).double()
    handle.track(twin)
    train(model, optimizer, range(6))
    assert twin[0].core.dtype == twin[0].u.dtype == torch.float64
    assert twin(batch(0, 2, 10)).dtype == torch.float64


@pytest.mark.bad_input
def test_a_model_of_another_kind_cannot_be_tracked():
    class Other(nn.Linear):
        pass

    model = mlp(10)
    _, handle = attached(model, **SCHEDULE)
    other = mlp(10)
    other[2] = Other(10, 10)
    for _ in range(2):  # and is not remembered as tracked
        with pytest.raises(ConfigError, match="named '2'"):
            handle.track(other)
