"""``bases="trained"``: what the switch and later cuts do to weights, optimizer state and copies."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import orthotrain
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
from orthotrain.errors import CheckpointError, ConfigError, OrthotrainWarning
from orthotrain.layers import LowRankLinear, LowRankMultiheadAttention
from orthotrain.linalg.factor_pair import balanced_pair, halves, orthonormal_form
from orthotrain.lowrank import compress, load, restore_structure, save, to_dense, to_factored
from orthotrain.methods.basis_change import CoordinateChange
from orthotrain.methods.pair_change import PairCut, PairSwitch
from reference.matrices import generator

SCHEDULE = {"delay_steps": 3, "every_steps": 2, "rank_rtol": 0.2, "max_drop": 0.2}
TRAINED = {**SCHEDULE, "bases": "trained"}


def low_rank_everything(*, steps=6, dtype=torch.float64):
    model = filled(Everything(), dtype=dtype)
    optimizer, handle = attached(model, torch.optim.AdamW(model.parameters(), lr=0.01), **TRAINED)
    train(model, optimizer, range(steps), loss_of=everything_loss)
    return model, optimizer, handle


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- the switch: to first order the dense step, projected --------------------------------------


def weight_after_one_more_step(lr):
    """A layer's weight at the switch and after the next step, and that step of a dense twin."""
    low_rank = mlp(6, depth=1)
    options = {"lr": lr, "momentum": 0.9, "weight_decay": 0.0}
    optimizer = torch.optim.SGD(low_rank.parameters(), **options)
    attached(low_rank, optimizer, delay_steps=4, every_steps=99, rank_rtol=0.0, bases="trained")
    twin, velocity = low_rank[0].weight.detach().clone(), torch.zeros(6, 6, dtype=torch.float64)
    bias = low_rank[0].bias.detach().clone()
    bias_velocity = torch.zeros_like(bias)
    for step in range(4):
        velocity, bias_velocity = heavy_ball(twin, bias, velocity, bias_velocity, step, lr)
    train(low_rank, optimizer, range(4))
    at_switch = low_rank[0].weight.detach().clone()
    torch.testing.assert_close(at_switch, twin, rtol=0, atol=1e-12)
    heavy_ball(twin, bias, velocity, bias_velocity, 4, lr)
    train(low_rank, optimizer, [4])
    return at_switch, low_rank[0].weight.detach(), twin - at_switch


def heavy_ball(weight, bias, velocity, bias_velocity, step, lr):
    """One step of SGD with momentum 0.9 on the loss of ``mlp_loss``, by hand."""
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    x = batch(step, 16, 6)
    loss = (nn.functional.linear(x, w, b) - x.flip(1).sin()).square().mean()
    g, g_bias = torch.autograd.grad(loss, (w, b))
    velocity, bias_velocity = 0.9 * velocity + g, 0.9 * bias_velocity + g_bias
    weight.sub_(lr * velocity)
    bias.sub_(lr * bias_velocity)
    return velocity, bias_velocity


def test_the_first_momentum_step_is_the_dense_one_in_the_metric_of_the_factors():
    # L and R move by d V r^(1/2) and r^(1/2) U^T d, so the weight by d V r V^T + U r U^T d.
    errors = []
    for lr in (1e-2, 1e-3):
        before, after, dense_step = weight_after_one_more_step(lr)
        u, s, vh = torch.linalg.svd(before)
        expected = dense_step @ vh.mT @ torch.diag(s) @ vh + u @ torch.diag(s) @ u.mT @ dense_step
        assert expected.norm() > 1e-2 * lr
        errors.append(float(((after - before) - expected).norm() / expected.norm()))
    assert errors[0] < 0.02
    assert errors[1] < 0.15 * errors[0]  # what is left is of second order in the step


def test_moments_of_adam_follow_entry_by_entry():
    model = mlp(7, depth=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attached(model, optimizer, delay_steps=5, every_steps=99, rank_rtol=0.3, bases="trained")
    weight = model[0].weight
    train(model, optimizer, range(4))
    twin = copy.deepcopy((model, optimizer.state_dict()))
    train(model, optimizer, [4])
    dense, state = twin
    alone = torch.optim.Adam(dense.parameters(), lr=1e-3)
    alone.load_state_dict(state)
    train(dense, alone, [4])
    old, new = alone.state[dense[0].weight], optimizer.state[weight]
    assert weight is model[0].pair
    k = model[0].rank
    assert k < 7
    u, s, vh = torch.linalg.svd(dense[0].weight.detach())
    m, v = old["exp_avg"], old["exp_avg_sq"]
    of_left, of_right = halves(new["exp_avg"], 7)
    sq_left, sq_right = halves(new["exp_avg_sq"], 7)
    for j in range(k):
        sign = torch.sign(u[:, j] @ model[0].pair_of()[0].detach()[:, j])
        left, right = sign * m @ vh[j] * s[j].sqrt(), sign * s[j].sqrt() * u[:, j] @ m
        torch.testing.assert_close(of_left[:, j], left, rtol=0, atol=1e-12)
        torch.testing.assert_close(of_right[j], right, rtol=0, atol=1e-12)
        for i in range(7):
            wanted = sum(v[i, n] * vh[j, n] ** 2 * s[j] for n in range(7))
            torch.testing.assert_close(sq_left[i, j], wanted, rtol=1e-9, atol=1e-15)
            wanted = sum(s[j] * u[n, j] ** 2 * v[n, i] for n in range(7))
            torch.testing.assert_close(sq_right[j, i], wanted, rtol=1e-9, atol=1e-15)
    assert new["step"] == old["step"] == 5


# --- the two changes of coordinates ------------------------------------------------------------


def changes(m, n, k, *lead):
    """A switch and a later cut, each with the old parameter and the new one."""
    w = draw(*lead, m, n)
    p, s, qh = torch.linalg.svd(w, full_matrices=False)
    first = (p[..., :k], s[..., :k], qh[..., :k, :])
    yield PairSwitch(*first), w, balanced_pair(*first)
    left, right = draw(*lead, m, k, seed=1), draw(*lead, k, n, seed=2)  # not balanced
    p, s, qh = torch.linalg.svd(left @ right, full_matrices=False)
    r = k - 1
    cut = (p[..., :r], s[..., :r], qh[..., :r, :])
    yield PairCut(left, right, *cut), torch.cat((left.mT, right), -1), balanced_pair(*cut)


SHAPES = pytest.mark.parametrize("shape", [(7, 5, 3), (4, 9, 4), (5, 6, 3, 2)], ids=str)


@SHAPES
def test_what_is_linear_becomes_the_gradient_in_the_new_coordinates(shape):
    """Of a loss that is linear in the weight, whose gradient a cut does not change."""
    m, n, *_ = shape
    for change, old, new in changes(*shape):
        g = draw(*old.shape[:-2], m, n, seed=5)

        def gradient(value, g=g):
            value = value.clone().requires_grad_()
            weight = value
            if value.shape[-2:] != (m, n):
                left, right = halves(value, m)
                weight = left @ right
            return torch.autograd.grad((weight * g).sum(), value)[0]

        torch.testing.assert_close(change.linear(gradient(old)), gradient(new), rtol=0, atol=1e-12)
        assert change.before == tuple(old.shape)
        assert change.after == tuple(new.shape)


@SHAPES
def test_squares_follow_entrywise_and_steps_are_averaged(shape):
    for change, old, _ in changes(*shape):
        v = draw(*old.shape, seed=6).square()
        basis = torch.eye(v[..., :, :].shape[-2:].numel(), dtype=v.dtype)
        basis = basis.reshape(-1, *old.shape[-2:])
        for block in range(old.shape[:-2].numel()):
            one = block_of(change, block)
            linear = torch.stack([one.linear(e) for e in basis])
            wanted = (v.reshape(-1, v.shape[-2:].numel())[block, :, None, None] * linear**2).sum(0)
            got = change.squared(v).reshape(-1, *wanted.shape)[block]
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)
        averaged = change.by_rule(v, "averaged")
        assert averaged.min() >= v.min() * (1 - 1e-12)
        assert averaged.max() <= v.max() * (1 + 1e-12)


def block_of(change: CoordinateChange, block: int) -> CoordinateChange:
    fields = {
        name: value.reshape(-1, *value.shape[-(1 if name == "s" else 2) :])[block]
        for name, value in vars(change).items()
    }
    return type(change)(**fields)


@SHAPES
def test_a_copy_of_the_parameter_stands_for_its_part_inside_the_bases(shape):
    m, n, *_ = shape
    for change, old, new in changes(*shape):
        torch.testing.assert_close(change.by_rule(old, "copied"), new, rtol=0, atol=1e-12)
        other = old + 0.05 * draw(*old.shape, seed=8)
        moved = change.by_rule(other, "copied")
        left, right = halves(moved, m)
        whole = other if other.shape[-2:] == (m, n) else torch.matmul(*halves(other, m))
        wanted = change.p @ change.p.mT @ whole @ change.qh.mT @ change.qh
        torch.testing.assert_close(left @ right, wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(left.mT @ left, right @ right.mT, rtol=0, atol=1e-12)
        assert (moved - new).norm() < 0.5 * new.norm()  # near it, not a rotation away


def test_singular_values_of_zero_leave_numbers():
    p, s, qh = torch.linalg.svd(draw(5, 4), full_matrices=False)
    s[2:] = 0
    left, right = halves(balanced_pair(p, s, qh), 5)
    change = PairCut(left, right, p, s, qh)
    for rule in ("linear", "copied", "squared", "averaged"):
        assert change.by_rule(draw(4, 9).abs(), rule).isfinite().all()


# --- cuts ----------------------------------------------------------------------------------------


def test_a_later_update_is_the_best_cut_of_the_product_and_balances_its_factors():
    model = mlp(9, depth=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, handle = attached(
        model, optimizer, delay_steps=0, every_steps=1, rank_rtol=0.0, bases="trained"
    )
    layer = model[0]
    with torch.no_grad():  # as training leaves it
        layer.pair.add_(draw(*layer.pair.shape, seed=3))
    before = layer.weight.detach().clone()
    u, s, vh = torch.linalg.svd(before)
    torch.testing.assert_close(torch.linalg.svdvals(layer.core), s, rtol=1e-10, atol=1e-12)
    kept = layer.pair.detach().clone()
    train(model, optimizer, [0])
    assert torch.equal(layer.pair, kept)  # nothing to cut, nothing to do
    handle.detach()
    attached(
        model, optimizer, delay_steps=1, every_steps=9, stored_budget=0.999, max_drop=1.0,
        bases="trained",
    )  # fmt: skip
    train(model, optimizer, [1])
    k = layer.rank
    assert 1 < k < 9
    wanted = u[:, :k] @ torch.diag(s[:k]) @ vh[:k]
    torch.testing.assert_close(layer.weight.detach(), wanted, rtol=0, atol=1e-12)
    left, right = layer.pair_of()
    torch.testing.assert_close(left.mT @ left, right @ right.mT, rtol=0, atol=1e-12)
    compressed = compress(model, energy=0.8, only_if_cheaper=False)[0]
    assert compressed.rank < k
    k = compressed.rank
    wanted = u[:, :k] @ torch.diag(s[:k]) @ vh[:k]
    torch.testing.assert_close(compressed.weight.detach(), wanted, rtol=0, atol=1e-12)
    assert "pair" in dict(compressed.named_parameters())  # a layer keeps the form it has


def test_ranks_fall_over_updates_and_every_layer_learns():
    model, optimizer, handle = low_rank_everything(steps=4)
    ranks = [row.rank for row in handle.summary().rows]
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    train(model, optimizer, [4], loss_of=everything_loss)
    assert [row.rank for row in handle.summary().rows] != ranks  # the update after step 5
    train(model, optimizer, [5], loss_of=everything_loss)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    changed = [
        p.shape != b.shape or not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)
    ]
    assert all(changed)
    assert not any(name.endswith((".u", ".vh", "_u", "_vh")) for name in model.state_dict())
    assert len(events(handle, "switch")) == len(handle.summary().rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_narrow_dtypes_switch_and_train(dtype):
    model = mlp(8, dtype=dtype)
    optimizer, _ = attached(model, torch.optim.SGD(model.parameters(), lr=0.01), **TRAINED)
    loss = train(model, optimizer, range(6))
    assert loss.isfinite()
    assert {p.dtype for p in model.parameters()} == {dtype}


# --- what is told --------------------------------------------------------------------------------


def test_trainable_and_stored_are_both_factors():
    model, _, handle = low_rank_everything()
    summary = handle.summary()
    for row in summary.rows:
        module = model.get_submodule(row.name.removesuffix(".in_proj_weight"))
        weight = "in_proj_weight" if row.name.endswith("in_proj_weight") else "weight"
        layout = module.layout(module, weight)
        numbers = layout.blocks * row.rank * (layout.m + layout.n)
        assert (row.trainable, row.stored, row.form) == (numbers, numbers, "two factors")
        assert row.frozen_factors == 0
    assert summary.total.stored == sum(p.numel() for p in model.parameters())
    assert "two factors" in str(summary)


def test_a_layer_stays_dense_until_two_factors_hold_fewer_numbers():
    def rank_and_form(**settings):
        model = filled(nn.Sequential(nn.Linear(100, 100)))
        with torch.no_grad():
            s = torch.cat((torch.ones(52), torch.full((48,), 1e-3)))
            s, (u, _, vh) = s.double(), torch.linalg.svd(model[0].weight)
            model[0].weight.copy_(u @ torch.diag(s) @ vh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        _, handle = attached(
            model, optimizer, delay_steps=1, rank_rtol=0.1, only_if_cheaper=True, **settings
        )
        train(model, optimizer, [0], loss_of=lambda m, step: m(batch(step, 4, 100)).sum())
        (row,) = handle.summary().rows
        return row

    frozen = rank_and_form(bases="frozen")  # pays in time up to 53
    assert (frozen.rank, frozen.form) == (52, "factored")
    trained = rank_and_form(bases="trained")  # holds fewer numbers below 50 only
    assert (trained.rank, trained.form) == (None, "dense")
    assert "rank 52 would not be cheaper than dense yet" in trained.note


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bases": "both"}, "bases to be one of"),
        ({"bases": "trained", "optimizer_state": "slice"}, "no leading block"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        as_published(delay_steps=1, every_steps=1, **settings)


@pytest.mark.bad_input
def test_muon_with_groups_is_refused_at_attach_with_the_layer():
    model = nn.Sequential(nn.Conv2d(32, 32, 3, groups=2, bias=False))
    flat = nn.Parameter(torch.zeros(3, 3))
    optimizer = torch.optim.Muon([flat])
    optimizer.param_groups[0]["params"] = list(model.parameters())
    with pytest.raises(ConfigError, match="cannot convert 0: Muon"):
        attached(model, optimizer, bases="trained")


def test_muon_is_warned_about_where_it_would_see_two_factors_as_one_matrix():
    def attach_to(bases):
        model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(3)))
        attached(model, torch.optim.Muon(model.parameters()), bases=bases)

    attach_to("frozen")  # warnings are errors in tests
    with pytest.warns(OrthotrainWarning, match="Muon sees the two trained factors"):
        attach_to("trained")


# --- other forms, files and copies -------------------------------------------------------------


def test_merged_factored_and_stored_models_give_the_same_outputs(tmp_path):
    model, _, handle = low_rank_everything()
    x = Everything.batch(0)
    wanted = model(x).detach()
    save(model, tmp_path / "m.safetensors")
    fresh = load(filled(Everything(), seed=5), tmp_path / "m.safetensors")
    assert torch.equal(fresh(x), wanted)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        ranks = json.loads(file.metadata()["ranks"])
    assert ranks["shared.pair"] == model.shared.rank
    assert ranks["encoder.self_attn.in_proj_pair"] == model.encoder.self_attn.rank
    assert fresh.tied[0].pair is fresh.tied[1].pair
    handle.detach()
    for change in (to_dense, to_factored):
        other = change(copy.deepcopy(model))
        torch.testing.assert_close(other(x), wanted, rtol=0, atol=1e-12)
        assert not any("pair" in name for name in other.state_dict())


def test_two_plain_layers_hold_the_factors_themselves():
    layer = LowRankLinear.from_linear(nn.Linear(20, 16), rank=3, bases="trained")
    left, right = (t.detach().clone() for t in layer.pair_of())
    first, second = to_factored(nn.Sequential(layer))[0]
    assert torch.equal(first.weight, right)
    assert torch.equal(second.weight, left)


@pytest.mark.parametrize("to", ["dense", "frozen", "trained"])
def test_structure_follows_the_checkpoint_from_any_form_to_any_other(to):
    def model_in(form, seed):
        model = filled(Everything(), seed=seed)
        settings = {"delay_steps": 0, "rank_rtol": 0.3}
        if form != "dense":
            attached(model, bases=form, **settings)
        return model

    source = model_in(to, 1)
    state = source.state_dict()
    for form in ("dense", "frozen", "trained"):
        model = model_in(form, 2)
        ids = [id(p) for p in model.parameters()]
        assert restore_structure(model, state) is model
        model.load_state_dict(state)
        assert [id(p) for p in model.parameters()] == ids
        assert torch.equal(model(Everything.batch(0)), source(Everything.batch(0)))


@pytest.mark.bad_input
def test_a_pair_without_a_layer_or_of_another_size_is_refused():
    state = low_rank_everything()[0].state_dict()
    with pytest.raises(CheckpointError, match=r"grouped\.pair has no layer"):
        restore_structure(nn.Sequential(nn.Linear(3, 3)), state)
    other = filled(Everything())
    other.shared = nn.Linear(16, 17)
    with pytest.raises(CheckpointError, match=r"shared\.weight: the checkpoint holds a pair"):
        restore_structure(other, state)


def test_an_average_follows_and_stands_for_an_average_of_weights():
    model = mlp(10)
    optimizer, handle = attached(model, torch.optim.SGD(model.parameters(), lr=0.05), **TRAINED)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    handle.track(ema)
    cuts = 0
    for step in range(9):
        old = weights(ema.module)
        train(model, optimizer, [step])
        if handle.run.step in (3, 5, 7, 9):  # the average followed: its part inside the bases
            changed = [r["layer"] for r in handle.records if "rank" in r and r["step"] == step + 1]
            for index in map(int, changed):
                cuts += 1
                u, _, vh = orthonormal_form(*model[index].pair_of())
                wanted = u @ u.mT @ old[f"{index}.weight"] @ vh.mT @ vh
                twin = ema.module[index]
                torch.testing.assert_close(twin.weight.detach(), wanted, rtol=0, atol=1e-12)
        old = weights(ema.module)
        ema.update_parameters(model)
        for index in (0, 2, 4):
            linear = 0.9 * old[f"{index}.weight"] + 0.1 * model[index].weight.detach()
            got = ema.module[index].weight.detach()
            assert (got - linear).norm() < 1e-2 * linear.norm()  # of second order
            assert ema.module[index] is not model[index]
    assert cuts > 3


@pytest.mark.parametrize("at", [1, 3, 4, 6])
@pytest.mark.parametrize("track_first", [True, False])
def test_an_average_resumes_bit_for_bit(at, track_first):
    def build():
        model = mlp(10, dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        _, handle = attached(model, optimizer, **TRAINED)
        handle.track(ema)
        return model, optimizer, ema, handle

    def go_on(parts, steps):
        for step in steps:
            train(parts[0], parts[1], [step])
            parts[2].update_parameters(parts[0])

    parts = build()
    go_on(parts, range(at))
    states = through_file([part.state_dict() for part in parts])
    go_on(parts, range(at, 9))
    again = build()
    for index in (2, 0, 1, 3) if track_first else (0, 1, 3, 2):
        again[index].load_state_dict(states[index])
    go_on(again, range(at, 9))
    for key, value in parts[2].state_dict().items():
        assert torch.equal(again[2].state_dict()[key], value), key


def test_a_copy_tracked_late_takes_the_present_form_and_a_like_one_is_left_bit_for_bit():
    model = mlp(10)
    late = copy.deepcopy(model)
    optimizer, handle = attached(model, **TRAINED)
    train(model, optimizer, range(6))
    old = weights(late)
    handle.track(late)
    u, _, vh = orthonormal_form(*model[4].pair_of())
    wanted = u @ u.mT @ old["4.weight"] @ vh.mT @ vh
    torch.testing.assert_close(late[4].weight.detach(), wanted, rtol=0, atol=1e-12)
    like = copy.deepcopy(model)
    with torch.no_grad():
        like[4].pair.add_(0.01)
    before = {key: value.clone() for key, value in like.state_dict().items()}
    handle.track(like)
    assert all(torch.equal(value, before[key]) for key, value in like.state_dict().items())


def test_attention_shares_a_right_factor_where_it_is_told_to():
    model = filled(Everything())
    optimizer, handle = attached(model, shared_attention_basis=True, **TRAINED)
    train(model, optimizer, range(6), loss_of=everything_loss)
    attention = model.encoder.self_attn
    assert type(attention) is LowRankMultiheadAttention
    assert attention.in_proj_pair.shape == (attention.rank, 48 + 16)
    assert handle.summary()


# --- methods that read matrices see two --------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (8, 8)], ids=str)
def test_an_orthogonal_gradient_is_that_of_each_factor(shape):
    m, n = shape
    layer = LowRankLinear.from_linear(nn.Linear(n, m).double(), rank=3, bases="trained")
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    method = orthotrain.NearestOrthogonalGradient("0", scale="gradient_norm", record_every=1)
    handle = orthotrain.attach(model, optimizer, method)
    model(draw(5, n)).square().sum().backward()
    of_left, of_right = (t.clone() for t in halves(layer.pair.grad, m))
    before = layer.pair.detach().clone()
    optimizer.step()
    for step, gradient in zip(
        halves(before - layer.pair.detach(), m), (of_left, of_right), strict=True
    ):
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        wanted = u @ vh * gradient.norm() / 3**0.5
        torch.testing.assert_close(step, wanted, rtol=0, atol=1e-10)
    assert handle.records[-1]["gradient_rank"] == 3


def test_a_layer_that_switches_under_a_method_is_read_as_two_matrices_from_then_on():
    model = mlp(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    orthotrain.attach(
        model, optimizer,
        as_published(
            delay_steps=2, every_steps=2, rank_rtol=0.1, layer_fraction=1.0, bases="trained",
            only_if_cheaper=False, dense_last=False,
        ),
        orthotrain.NearestOrthogonalGradient("*", scale="gradient_norm"),
        orthotrain.OptimalLearningRate("*"),
        orthotrain.ConditionMonitor("*", every_steps=1),
        orthotrain.BasisStability(every_steps=1),
    )  # fmt: skip
    loss = train(model, optimizer, range(6))
    assert loss.isfinite()
    assert model[0].pair.shape == (model[0].rank, 16)


def test_a_budget_is_counted_in_the_form_that_is_stored():
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    dense = sum(p.numel() for p in model.parameters())
    method = as_published(
        delay_steps=0, every_steps=1, rank=orthotrain.StoredBudget(0.5), layer_fraction=1.0,
        max_drop=1.0, dense_last=False, bases="trained",
    )  # fmt: skip
    handle = orthotrain.attach(model, optimizer, method)
    for _ in range(2):  # the first update does not reach the first layer
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()
    # One more rank of any layer is 128 numbers; frozen bases would leave a tenth unused.
    assert 0.5 * dense - 128 < handle.summary().total.stored <= 0.5 * dense
