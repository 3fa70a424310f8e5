"""Several optimizers over parts of one model: when layers change, and whose state follows."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lowrank.nets import as_published, batch, events, filled, mlp, mlp_loss, through_file, weights
from methods.doubles import same
from orthotrain import AdaptiveLowRank, ConditionMonitor, attach
from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.methods import NearestOrthogonalGradient, OptimalLearningRate, Retraction
from orthotrain.models import GPT
from reference.matrices import generator

ORDERS = list(itertools.permutations(["model", "first", "second", "handle"]))
# The switch comes after step 3, a cut after 5 and every 2 steps from there on.
FROZEN = as_published(
    delay_steps=3, every_steps=2, rank_rtol=0.2, max_drop=0.2, layer_fraction=1.0,
    dense_last=False, only_if_cheaper=False, core_step="auto",
)  # fmt: skip
TRAINED = AdaptiveLowRank(
    delay_steps=3, every_steps=2, rank_rtol=0.4, dense_last=False, only_if_cheaper=False
)
BUDGET = AdaptiveLowRank(stored_budget=0.6, delay_steps=5, dense_last=False)


def halves(model):
    """Layers 0 and 4, and layer 2."""
    return [*model[0].parameters(), *model[4].parameters()], list(model[2].parameters())


def others():
    return (
        NearestOrthogonalGradient("2", when="update", scale="rms", record_every=1),
        OptimalLearningRate(["0", "4"], floor=0.1, record_every=1),
        ConditionMonitor(["0", "2"]),
    )


def plain(handle):
    """Records without what a clock wrote; within a step their order is that of the optimizers."""
    found = ({k: v for k, v in r.items() if k != "seconds"} for r in handle.records)
    return sorted(found, key=lambda r: (r["step"], r["method"], str(r)))


# --- a list is one optimizer with several groups --------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reverse"),
    [(BUDGET, False), (FROZEN, False), (TRAINED, False), (TRAINED, True)],
    ids=["budget", "frozen", "trained", "in reverse"],
)
def test_two_optimizers_equal_one_with_two_groups(method, reverse):
    one, two = mlp(10), mlp(10)
    rates = (0.02, 0.05)
    groups = [{"params": p, "lr": lr} for p, lr in zip(halves(one), rates, strict=True)]
    single = torch.optim.AdamW(groups)
    pair = [torch.optim.AdamW(p, lr=lr) for p, lr in zip(halves(two), rates, strict=True)]
    whole = attach(one, single, method, *others())
    parts = attach(two, pair, method, *others())
    for step in range(12):
        for optimizers, model in (([single], one), (pair[::-1] if reverse else pair, two)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            mlp_loss(model, step).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert same(dict(one.state_dict()), dict(two.state_dict())), step
    assert whole.run.step == parts.run.step == 12
    assert any(r["rank"] < r["rank_before"] for r in whole.records if "rank_before" in r)
    assert same(whole.state_dict()["methods"], parts.state_dict()["methods"])
    assert plain(whole) == plain(parts)
    moments = [single.state[p] for p in one.parameters()]
    assert same(moments, [pair[p in set(halves(two)[1])].state[p] for p in two.parameters()])


@pytest.mark.parametrize("saved_at", [0, 2, 3, 6])
def test_with_the_state_of_both_it_goes_on_bit_for_bit(saved_at):
    def start():
        model = mlp(10)
        made = (torch.optim.SGD, torch.optim.AdamW)
        first, second = (
            make(p, lr=0.05, **({"momentum": 0.9} if make is torch.optim.SGD else {}))
            for make, p in zip(made, halves(model), strict=True)
        )
        handle = attach(model, [first, second], TRAINED, *others())
        return {"model": model, "first": first, "second": second, "handle": handle}

    def go_on(parts, steps):
        for step in steps:
            mlp_loss(parts["model"], step).backward()
            for name in ("first", "second"):
                parts[name].step()
                parts[name].zero_grad()

    parts, again = start(), start()
    go_on(parts, range(saved_at))
    state = {name: part.state_dict() for name, part in parts.items()}
    state = through_file(state)
    go_on(parts, range(saved_at, saved_at + 5))
    for name in ORDERS[3 * saved_at]:
        again[name].load_state_dict(state[name])
    go_on(again, range(saved_at, saved_at + 5))
    assert same(*({n: part.state_dict() for n, part in each.items()} for each in (parts, again)))


# --- a GAN in one module --------------------------------------------------------------------------


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = mlp(6, seed=1)
        self.discriminator = mlp(6, seed=2)

    def optimizers(self):
        parts = {"d": self.discriminator, "g": self.generator}
        return {name: torch.optim.Adam(p.parameters(), lr=0.02) for name, p in parts.items()}


def play(model, optimizers, steps, *, critic=1, skip=(), stepped=lambda name: None):
    """The usual loop: the picture that the discriminator saw is used again for the generator.

    Steps of the discriminator in ``skip`` are not taken, as by ``GradScaler``.
    """
    for step in steps:
        for i in range(critic):
            fake = model.generator(batch(10 * step + i, 5, 6))
            optimizers["d"].zero_grad()
            real = batch(10 * step + i + 500, 5, 6)
            (model.discriminator(fake.detach()) - model.discriminator(real)).mean().backward()
            if step not in skip:
                stepped("d")
                optimizers["d"].step()
        optimizers["g"].zero_grad()
        (-model.discriminator(fake).mean()).backward()
        stepped("g")
        optimizers["g"].step()


def low_rank():
    return as_published(
        delay_steps=2, every_steps=2, rank_rtol=0.3, layer_fraction=1.0, dense_last=False,
        only_if_cheaper=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("order", "critic", "skip"), [("dg", 1, ()), ("gd", 3, ()), ("dg", 1, (1,)), ("gd", 3, (1,))]
)
def test_a_layer_of_a_gan_changes_right_after_a_step_of_its_own_optimizer(order, critic, skip):
    model = Gan()
    optimizers = model.optimizers()
    handle = attach(model, [optimizers[name] for name in order], low_rank())
    seen, last = [], []
    handle.on_record(lambda r: seen.append((r["layer"][0], last[-1])) if "layer" in r else None)
    play(model, optimizers, range(8), critic=critic, skip=skip, stepped=last.append)
    # With three steps of the discriminator, those of one round stand in for the other's.
    assert handle.run.step == (8 - len(skip) if critic == 1 else 8)
    assert {layer for layer, _ in seen} == {"d", "g"}
    assert all(layer == stepping for layer, stepping in seen)
    assert set(handle.ranks) == {f"{part}.{i}" for part in ("generator", "discriminator")
                                 for i in (0, 2, 4)}  # fmt: skip
    before = {name: core.detach().clone() for name, core in model.named_parameters()}
    play(model, optimizers, [9])
    cores = [(name, p) for name, p in model.named_parameters() if name.endswith("core")]
    assert all(p.shape != before[name].shape or not p.equal(before[name]) for name, p in cores)


def test_a_gan_with_a_handle_per_part():
    model = Gan()
    optimizers = model.optimizers()
    handles = {name: attach(model, optimizers[name], low_rank()) for name in "gd"}
    play(model, optimizers, range(6), critic=2)
    assert {name: handle.run.step for name, handle in handles.items()} == {"g": 6, "d": 12}
    assert set(handles["g"].ranks) == {"generator.0", "generator.2", "generator.4"}
    assert set(handles["d"].ranks) == {"discriminator.0", "discriminator.2", "discriminator.4"}


def test_a_gan_goes_on_bit_for_bit_while_layers_wait():
    def start():
        model = Gan()
        optimizers = model.optimizers()
        handle = attach(model, list(optimizers.values()), low_rank())
        return {"model": model, **optimizers, "handle": handle}

    parts, again = start(), start()
    play(parts["model"], parts, range(2))
    assert len(events(parts["handle"], "switch")) == 3  # those of the generator
    state = through_file({name: part.state_dict() for name, part in parts.items()})
    for name, part in again.items():
        part.load_state_dict(state[name])
    for each in (parts, again):
        play(each["model"], each, range(2, 8), skip=(4,))
    assert len(again["handle"].ranks) == 6
    assert same(*({n: part.state_dict() for n, part in each.items()} for each in (parts, again)))


# --- gradients that wait for their step -----------------------------------------------------------


@pytest.mark.parametrize("importance", ["weight", "loss"])
def test_a_gradient_that_waits_for_its_step_is_used_at_full_length(importance):
    """The first optimizer is skipped once, so from then on a step of training ends at it."""
    low, dense = mlp(8), mlp(8)
    low_pair, dense_pair = (
        [torch.optim.SGD(part, lr=0.1, momentum=0.9) for part in halves(model)]
        for model in (low, dense)
    )
    keeping_all = as_published(
        delay_steps=1, every_steps=10, rank_rtol=0.0, layer_fraction=1.0, dense_last=False,
        only_if_cheaper=False, importance=importance,
    )  # fmt: skip
    handle = attach(low, low_pair, keeping_all)
    for pair, model in ((low_pair, low), (dense_pair, dense)):
        mlp_loss(model, 0).backward()
        pair[1].step()
        for optimizer in pair:
            optimizer.zero_grad()
        mlp_loss(model, 1).backward()
        pair[0].step()
    assert set(handle.ranks) == {"0", "4"}
    assert low[2].weight.grad is not None
    low_pair[1].step()
    dense_pair[1].step()
    assert set(handle.ranks) == {"0", "2", "4"}
    assert low[2].core.grad is None
    for name, weight in weights(dense).items():
        torch.testing.assert_close(weights(low)[name], weight, rtol=1e-12, atol=1e-12)


def test_layers_that_wait_change_before_the_next_update():
    model = Gan()
    optimizers = model.optimizers()
    every = as_published(delay_steps=1, every_steps=1, rank_rtol=0.3, max_drop=0.3,
                         layer_fraction=1.0, dense_last=False, only_if_cheaper=False)  # fmt: skip
    handle = attach(model, list(optimizers.values()), every)
    play(model, optimizers, range(6))
    updates = [r["update"] for r in events(handle, "update")]
    assert updates == [1, 2, 3, 4, 5]  # the sixth waits for the discriminator
    assert len(handle.ranks) == 6


def test_optimizers_that_step_inside_the_backward_pass():
    """One per parameter, which frees each gradient as soon as it is there."""
    model = mlp(10)
    each = {p: torch.optim.AdamW([p], lr=0.01) for p in model.parameters()}
    handle = attach(model, list(each.values()), low_rank())

    def step(parameter):
        each[parameter].step()
        each[parameter].zero_grad()

    for parameter in each:
        parameter.register_post_accumulate_grad_hook(step)
    for i in range(8):
        before = weights(model)
        mlp_loss(model, i).backward()
        assert all(not torch.equal(before[name], now) for name, now in weights(model).items())
    assert handle.run.step == 8
    assert set(handle.ranks) == {"0", "2", "4"}


# --- Muon and AdamW -------------------------------------------------------------------------------


def small_gpt():
    model = GPT(vocabulary=11, context=6, width=12, depth=2, heads=2, generator=generator(3))
    body = [p for p in model.blocks.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not q for q in body)]
    muon = torch.optim.Muon(body, lr=0.02, adjust_lr_fn="match_rms_adamw")
    return {"model": model, "muon": muon, "adamw": torch.optim.AdamW(rest, lr=3e-3)}


def train_gpt(parts, steps):
    for step in steps:
        symbols = torch.randint(0, 11, (4, 7), generator=generator(step))
        scores = parts["model"](symbols[:, :-1]).flatten(0, 1)
        loss = nn.functional.cross_entropy(scores, symbols[:, 1:].flatten())
        for name in ("muon", "adamw"):
            parts[name].zero_grad()
        loss.backward()
        for name in ("muon", "adamw"):
            parts[name].step()


@pytest.mark.parametrize("bases", ["frozen", "trained"])
def test_muon_for_the_matrices_and_adamw_for_the_rest_of_a_transformer(bases):
    def start():
        parts = small_gpt()
        method = AdaptiveLowRank(rank_rtol=0.6, delay_steps=8, every_steps=4, bases=bases,
                                 only_if_cheaper=False)  # fmt: skip
        handle = attach(parts["model"], [parts["muon"], parts["adamw"]], method)
        return parts | {"handle": handle}

    def both():
        if bases == "frozen":
            return start(), start()
        with pytest.warns(OrthotrainWarning, match="Muon sees the two") as caught:
            found = start(), start()
        assert caught[0].filename == __file__
        return found

    parts, again = both()
    train_gpt(parts, range(13))
    handle, model = parts["handle"], parts["model"]
    assert len(handle.ranks) == 12
    assert all(rank < 12 for rank in handle.ranks.values())
    for group in parts["muon"].param_groups:
        for p in group["params"]:
            assert parts["muon"].state[p]["momentum_buffer"].shape == p.shape
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = through_file({name: part.state_dict() for name, part in parts.items()})
    for name, part in again.items():
        part.load_state_dict(state[name])
    for each in (parts, again):
        train_gpt(each, range(13, 18))
    assert all(p.shape != before[n].shape or not torch.equal(p, before[n])
               for n, p in model.named_parameters())  # fmt: skip
    assert same(*({n: part.state_dict() for n, part in each.items()} for each in (parts, again)))


def test_a_handle_each_equals_one_for_both_where_parts_decide_alone():
    method = AdaptiveLowRank(rank_rtol=0.6, delay_steps=3, every_steps=3, bases="frozen",
                             only_if_cheaper=False, only=["blocks.*"])  # fmt: skip
    watch = Retraction("position", onto="norm")
    together, apart = small_gpt(), small_gpt()
    attach(together["model"], [together["muon"], together["adamw"]], method, watch)
    attach(apart["model"], apart["adamw"], watch)
    handle = attach(apart["model"], apart["muon"], method)
    for parts in (together, apart):
        train_gpt(parts, range(7))
    assert len(handle.ranks) == 12
    assert same(*({n: part.state_dict() for n, part in each.items()} for each in (together, apart)))


def test_an_optimizer_that_cannot_train_a_core_is_named_only_for_its_own_layers():
    model = filled(nn.Sequential(nn.Conv1d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(16, 16)))
    muon = torch.optim.Muon([model[2].weight], lr=0.02)
    rest = [p for p in model.parameters() if p is not model[2].weight]
    settings = dict(bases="frozen", delay_steps=2, every_steps=2, rank_rtol=0.1, dense_last=False,
                    only_if_cheaper=False)  # fmt: skip
    attach(model, [muon, torch.optim.AdamW(rest)], AdaptiveLowRank(**settings))
    other = filled(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    sparse = torch.optim.SparseAdam([other[1].weight])
    rest = [p for p in other.parameters() if p is not other[1].weight]
    with pytest.raises(ConfigError, match="cannot convert 1: SparseAdam"):
        attach(other, [torch.optim.SGD(rest, lr=0.1), sparse], AdaptiveLowRank(**settings))
