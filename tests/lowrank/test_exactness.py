"""What must be exact, or exactly as large as predicted, while the network changes its form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from lowrank.nets import (
    Attention,
    Everything,
    Flat,
    attached,
    batch,
    events,
    everything_loss,
    filled,
    mlp,
    mlp_loss,
    train,
    weights,
)
from orthotrain.lowrank.change import cut_trained_site_
from orthotrain.lowrank.look import leading
from orthotrain.lowrank.sites import Selection, find_sites
from reference.matrices import from_spectrum, generator
from reference.sgd import sgd_step

# --- (a) turning the basis changes nothing ---


def conv_net():
    """A convolution whose matrix is 36 x 36, and a linear layer."""
    return filled(nn.Sequential(nn.Conv2d(4, 36, 3), Flat(), nn.Tanh(), nn.Linear(36, 36)))


def conv_loss(model, step):
    return model(batch(step, 6, 4, 5, 5)).square().mean()


def attention_loss(model, step):
    x = batch(step, 6, 5, 8)
    return (model(x) - x.mean(1).sin()).square().mean()


NETS = {
    "linear": (mlp, mlp_loss),
    "conv": (conv_net, conv_loss),
    "attention": (lambda: filled(nn.Sequential(Attention(8), nn.Linear(8, 8))), attention_loss),
}


def embedding_loss(model, step):
    generator = torch.Generator().manual_seed(step)
    return model(torch.randint(8, (6, 5), generator=generator)).sin().square().mean()


# Square matrices, whose optimizer state has the same shape in the wrong order, too.
ON_REQUEST = {
    "embedding": (
        lambda: filled(nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8))), embedding_loss,
    ),
    "transposed": (lambda: filled(nn.Sequential(nn.ConvTranspose2d(4, 4, 1))), conv_loss),
}  # fmt: skip
RULES = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight decay": {"weight_decay": 0.1},
    "all": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
}


@pytest.mark.parametrize(
    ("net", "rule"),
    [(net, rule) for net in NETS for rule in RULES] + [(net, "all") for net in ON_REQUEST],
)
def test_a_run_that_turns_its_bases_follows_the_dense_run(net, rule):
    build, loss_of = (NETS | ON_REQUEST)[net]
    options = {"lr": 0.05, **RULES[rule]}
    dense, low_rank = build(), build()
    optimizer = torch.optim.SGD(low_rank.parameters(), **options)
    also = [net] if net in ON_REQUEST else []
    _, handle = attached(
        low_rank, optimizer, delay_steps=4, every_steps=3, rank_rtol=0.0, also=also
    )
    sites, _ = find_sites(low_rank, Selection(also=also))
    velocities = [None] * len(list(dense.parameters()))
    start = weights(dense)
    for step in range(20):
        gradients = torch.autograd.grad(loss_of(dense, step), list(dense.parameters()))
        sgd_step(list(dense.parameters()), gradients, velocities, **options)
        train(low_rank, optimizer, [step], loss_of=loss_of)
        if step > 4 and step % 3 == 0:  # no update does, where nothing is cut
            for site in sites:
                cut_trained_site_(site, leading(site, site.rank), optimizer)
        theirs, ours = weights(dense), weights(low_rank)
        assert theirs.keys() == ours.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-9)
    rows = handle.summary().rows
    assert all(row.rank == min(row.shape[0], row.rank) and row.rank for row in rows)
    assert len(events(handle, "switch")) == len(rows)
    assert not events(handle, "turn")
    moved = max(float((theirs[name] - start[name]).abs().max()) for name in theirs)
    assert moved > 1e-3  # else following would be easy


def test_turns_in_float32_keep_bases_and_product_to_a_millionth():
    model = mlp(64, depth=1, dtype=torch.float32)
    site, g, eye = find_sites(model, Selection())[0][0], generator(0), torch.eye(64)
    cut_trained_site_(site, leading(site, 64), None)
    for _ in range(40):  # measured after them: 7e-7, and 3e-7 of the product at each
        with torch.no_grad():
            site.parameter.copy_(torch.randn(64, 64, generator=g))
        before = model[0].weight.detach().double()
        cut_trained_site_(site, leading(site, 64), None)
        after = model[0].weight.detach().double()
        assert (after - before).norm() < 1e-6 * before.norm()
    u, core, vh = site.factors
    assert (u.double().mT @ u.double() - eye).abs().max() < 1e-6
    assert (vh.double() @ vh.double().mT - eye).abs().max() < 1e-6
    assert torch.equal(core, torch.diag(core.diagonal()))


# --- (b) a cut costs what it discards ---


def spectrum_net():
    model = filled(nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 9)))
    with torch.no_grad():
        model[0].weight.copy_(from_spectrum([5, 4, 3, 2, 1, 0.9, 0.3, 0.2, 0.1], 9, 12))
        model[1].weight.copy_(from_spectrum([8, 7, 6, 5, 4, 3, 0.5, 0.4, 0.3], 9, 9, seed=5))
    return model


def test_a_cut_changes_the_function_by_exactly_the_discarded_singular_values():
    model = spectrum_net()
    optimizer, handle = attached(
        model, torch.optim.SGD(model.parameters(), lr=0.0), delay_steps=1, every_steps=1
    )
    before = {name: weight for name, weight in weights(model).items() if "weight" in name}
    x = batch(0, 7, 12)
    hidden_before = model[0](x).detach()
    for _ in range(2):  # the first update reaches the last layer, the second one both
        model(x).sum().backward()
        optimizer.step()
    lost = {"0.weight": [0.3, 0.2, 0.1], "1.weight": [0.5, 0.4, 0.3]}
    for name, weight in weights(model).items():
        if "weight" in name:
            discarded = torch.linalg.svdvals(weight - before[name])
            expected = torch.tensor(lost[name], dtype=torch.float64)
            torch.testing.assert_close(discarded[:3], expected, rtol=1e-12, atol=0)
            assert discarded[3:].abs().max() < 1e-13
            frobenius = (weight - before[name]).norm()
            torch.testing.assert_close(frobenius, expected.norm(), rtol=1e-12, atol=0)
    change = weights(model)["0.weight"] - before["0.weight"]
    torch.testing.assert_close(model[0](x) - hidden_before, x @ change.mT, rtol=0, atol=1e-12)
    record = next(r for r in events(handle, "switch") if r["layer"] == "1")
    total = sum(v**2 for v in [8, 7, 6, 5, 4, 3, 0.5, 0.4, 0.3])
    assert record["rank"] == 6
    assert record["kept_energy"] == pytest.approx(1 - 0.5 / total, rel=1e-12)


def test_later_cuts_cost_what_they_discard_and_the_energy_lost_adds_up():
    model = spectrum_net()
    optimizer, handle = attached(
        model, torch.optim.SGD(model.parameters(), lr=0.0),
        delay_steps=1, every_steps=1, rank_rtol=0.35, max_drop=0.2,
    )  # fmt: skip
    start = model[1].weight.detach().clone()
    for _ in range(5):
        model(batch(0, 7, 12)).sum().backward()
        optimizer.step()
    mine = [r for r in handle.records if r.get("layer") == "1"]
    assert [r["rank"] for r in mine] == [8, 7, 6]  # then nothing is left to cut
    assert [r["event"] for r in mine] == ["switch", "turn", "turn"]
    change = (model[1].weight - start).square().sum()
    torch.testing.assert_close(change.item(), 0.5**2 + 0.4**2 + 0.3**2, rtol=1e-12, atol=0)
    kept = mine[-1]["kept_energy"]
    assert kept == pytest.approx(1 - change.item() / start.square().sum().item(), rel=1e-12)


# --- (c) the first Adam step after a switch ---


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("zeroed", [False, True])
def test_the_first_adam_step_after_a_switch_is_no_larger_than_before(kind, zeroed):
    lr = 1e-4
    model = mlp(6, depth=1)
    optimizer = kind(model.parameters(), lr=lr, betas=(0.9, 0.995))
    switch = 500
    attached(model, optimizer, delay_steps=switch, every_steps=10_000, rank_rtol=0.0)

    def step_size(step):
        before = model[0].weight.detach().clone()
        train(model, optimizer, [step], loss_of=noisy_loss)
        return ((model[0].weight - before).square().mean().sqrt() / lr).item()

    def noisy_loss(model, step):
        return (model(batch(step, 4, 6)) * batch(step + 5000, 4, 6)).mean()

    train(model, optimizer, range(switch - 30), loss_of=noisy_loss)
    usual = max([step_size(step) for step in range(switch - 30, switch - 1)])
    train(model, optimizer, [switch - 1], loss_of=noisy_loss)
    assert model[0].rank == 6
    if zeroed:  # what the published code does: moments gone, step count kept
        for key in ("exp_avg", "exp_avg_sq"):
            optimizer.state[model[0].core][key].zero_()
    after = step_size(switch)
    if zeroed:
        assert after > 1.2
        assert after > 3 * usual
    else:
        assert after <= usual


# --- (d) everything that is trained goes on being trained ---


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        lambda p: torch.optim.RMSprop(p, lr=0.001, foreach=True),
    ],
    ids=["sgd", "adamw", "fused adamw", "foreach rmsprop"],
)
def test_every_parameter_moves_after_every_resize(make):
    model = filled(Everything())
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    optimizer, handle = attached(
        model, make(parameters), delay_steps=2, every_steps=2, rank_rtol=0.3, max_drop=0.1
    )
    resizes = 0
    for step in range(11):
        before = [p.detach().clone() for p in parameters]
        train(model, optimizer, [step], loss_of=everything_loss)
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        if handle.run.step % 2 == 0:
            resized = [p.shape != old.shape for p, old in zip(parameters, before, strict=True)]
            resizes += sum(resized)
            assert all(p.grad is None for p, r in zip(parameters, resized, strict=True) if r)
            continue
        for name, p, old in zip(names, parameters, before, strict=True):
            assert not torch.equal(p, old), f"{name} stands still at step {step}"
    assert resizes > 20


def test_clipping_sees_the_gradients_of_what_is_trained_and_no_others():
    model = filled(Everything())
    optimizer, handle = attached(
        model, torch.optim.AdamW(model.parameters(), lr=0.01), rank_rtol=0.9, max_drop=0.1
    )
    for step in range(9):
        optimizer.zero_grad()
        everything_loss(model, step).backward()
        fresh = copy.deepcopy(model)
        fresh.zero_grad()
        everything_loss(fresh, step).backward()
        expected = torch.stack([p.grad.norm() for p in fresh.parameters()]).norm()
        torch.testing.assert_close(clip_grad_norm_(model.parameters(), 1e9), expected)
        torch.testing.assert_close(
            clip_grad_norm_(optimizer.param_groups[0]["params"], 0.01), expected
        )
        optimizer.step()
        if handle.run.step in (2, 4, 6, 8):
            changed = {r.get("layer") for r in handle.records if r["step"] == handle.run.step}
            cores = [m.core for n, m in model.named_modules() if n in changed]
            assert cores
            assert all(core.grad is None for core in cores)


# --- (e) what counts as a step ---


def test_accumulation_and_evaluation_do_not_move_the_schedule():
    model = mlp()
    optimizer, handle = attached(model, delay_steps=3, every_steps=2)
    forms = []
    for step in range(6):
        optimizer.zero_grad()
        for part in range(4):
            (mlp_loss(model, 4 * step + part) / 4).backward()
        model.eval()
        with torch.no_grad():
            for _ in range(5):
                mlp_loss(model, 0)
        model.train()
        optimizer.step()
        forms.append(sum(row.form != "dense" for row in handle.summary().rows))
    assert forms == [0, 0, 3, 3, 3, 3]
    assert [r["step"] for r in events(handle, "update")] == [3, 5]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_grad_scaler_skips_does_not_move_the_schedule(fused):
    model = mlp(dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    _, handle = attached(model, optimizer, delay_steps=3, every_steps=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    switched = []
    for step, bad in enumerate([False, True, True, False, True, False]):
        optimizer.zero_grad()
        scaler.scale(mlp_loss(model, step)).backward()
        if bad:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        switched.append(any(row.rank is not None for row in handle.summary().rows))
    assert switched == [False, False, False, False, False, True]
    assert handle.run.step == 3
    for step in range(2):
        optimizer.zero_grad()
        scaler.scale(mlp_loss(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert len(events(handle, "update")) == 2
