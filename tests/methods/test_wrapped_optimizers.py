"""Optimizers inside others: whose steps count, when methods act, and what follows."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from lowrank.nets import as_published
from methods.doubles import Diary, Idle, backward, hook_counts, small_model
from methods.wrappers import (
    SAM,
    BareLookahead,
    EverySecond,
    Listed,
    Lookahead,
    Mixture,
    Slotted,
    Two,
)
from orthotrain import sizes
from orthotrain.errors import ConfigError, StateError
from orthotrain.layers import LowRankLinear
from orthotrain.linalg import polar_factor
from orthotrain.methods import NearestOrthogonalGradient, Retraction, attach
from orthotrain.methods._compat import fires_step_hooks

LOOKAHEADS = {"hooks": Lookahead, "no hooks": BareLookahead}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def full_rank(**settings):
    """Switches after some steps and cuts nothing."""
    return as_published(
        every_steps=2, rank_rtol=0.0, layer_fraction=1.0, dense_last=False,
        only_if_cheaper=False, **{"delay_steps": 3, **settings},
    )  # fmt: skip


def square_model():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def train(model, optimizer, *, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()


# --- whose steps count ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [Lookahead, BareLookahead, EverySecond, Listed, Slotted])
def test_the_steps_of_the_optimizer_inside_count_once(wrapper):
    model = small_model()
    inner = sgd(model)
    outer = wrapper(inner)
    handle = attach(model, outer, Diary())
    assert handle.run.optimizer is inner
    for _ in range(4):
        backward(model)
        outer.step()
    assert handle.run.step == (2 if wrapper is EverySecond else 4)


@pytest.mark.parametrize("given", ["wrapper", "inside"])
@pytest.mark.parametrize("by", ["two calls", "a closure"])
def test_sam_takes_one_step_per_two_passes(given, by):
    model = small_model()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    handle = attach(model, optimizer if given == "wrapper" else optimizer.base_optimizer, Diary())
    for _ in range(8):
        backward(model)
        if by == "a closure":
            optimizer.step(lambda: backward(model))
        else:
            optimizer.first_step()
            backward(model)
            optimizer.second_step()
    assert handle.run.step == 8


@pytest.mark.parametrize("by", ["two calls", "a closure"])
def test_methods_change_the_gradient_that_sam_steps_with(by):
    """That of the second pass, at the weights uphill."""
    model, twin = small_model(), small_model()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    attach(model, optimizer, NearestOrthogonalGradient("0"))
    backward(model)
    if by == "a closure":
        optimizer.step(lambda: backward(model))
    else:
        optimizer.first_step()
        backward(model)
        optimizer.second_step()
    before = [p.detach().clone() for p in twin.parameters()]
    backward(twin)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(p.grad, alpha=0.05)
    twin.zero_grad()
    backward(twin)
    twin[0].weight.grad.copy_(polar_factor(twin[0].weight.grad))
    for p, start, ours in zip(twin.parameters(), before, model.parameters(), strict=True):
        torch.testing.assert_close(ours, start - 0.1 * p.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [Mixture, lambda params: Two(params, whole=True)])
def test_where_no_single_one_holds_all_parameters_the_steps_of_the_wrapper_count(build):
    model = small_model()
    optimizer = build(model.parameters())
    handle = attach(model, optimizer, Diary())
    assert handle.run.optimizer is optimizer
    train(model, optimizer, steps=3)
    assert handle.run.step == 3


def test_what_acts_after_the_step_acts_when_the_wrapper_is_done():
    model = small_model()
    optimizer = Lookahead(sgd(model))
    attach(model, optimizer, Retraction("0", onto="polar"))
    for _ in range(4):
        train(model, optimizer, steps=1)
        weight = model[0].weight.detach()
        torch.testing.assert_close(weight.T @ weight, torch.eye(3), rtol=0, atol=1e-5)


def test_a_step_that_failed_does_not_stop_the_count():
    model = small_model()
    optimizer = Lookahead(sgd(model))
    handle = attach(model, optimizer, Diary())

    def fail():
        raise RuntimeError("no batch")

    with pytest.raises(RuntimeError, match="no batch"):
        optimizer.step(fail)
    train(model, optimizer, steps=2)
    assert handle.run.step == 2


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.bad_input
def test_several_optimizers_that_nothing_steps_together_are_named():
    model = small_model()
    optimizer = Two(model.parameters(), whole=False)
    with pytest.raises(ConfigError, match=r"Two holds .* parts\['length'\], parts\['way'\]"):
        attach(model, optimizer, Diary())


@pytest.mark.bad_input
def test_an_optimizer_without_hooks_is_named():
    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            self.param_groups = [{"params": list(params)}]

        def step(self):
            """Nothing."""

    model = small_model()
    with pytest.raises(ConfigError, match=r"Own does not fire torch's hooks.*__init__"):
        attach(model, Own(model.parameters()), Diary())
    with pytest.raises(ConfigError, match="got NoneType"):
        attach(model, None, Diary())

    class Hidden:
        def __init__(self, optimizer):
            self.step = optimizer.step

    with pytest.raises(ConfigError, match=r"no optimizer was found .* give the torch.optim.Opt"):
        attach(model, Hidden(sgd(model)), Diary())


@pytest.mark.bad_input
def test_tensors_outside_of_the_state_are_refused_where_shapes_change():
    model = small_model()
    optimizer = Listed(sgd(model))
    before = hook_counts(model, optimizer.optimizer)
    with pytest.raises(ConfigError, match=r"Listed keeps tensors .* in \.slow"):
        attach(model, optimizer, full_rank())
    assert hook_counts(model, optimizer.optimizer) == before
    attach(model, optimizer, Diary()).detach()
    optimizer.slow = [[p for g in optimizer.optimizer.param_groups for p in g["params"]]]
    attach(model, optimizer, full_rank())  # parameters themselves follow


@pytest.mark.bad_input
def test_tensors_in_a_group_are_refused_where_shapes_change():
    model = small_model()
    optimizer = sgd(model)
    optimizer.param_groups[0]["anchors"] = {"first": torch.zeros(4, 3)}
    with pytest.raises(ConfigError, match=r"SGD keeps tensors .* in \.param_groups\[0\]\['anchors"):
        attach(model, optimizer, full_rank())


# --- what follows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOOKAHEADS)
@pytest.mark.parametrize("delay_steps", [2, 3])  # drawn back in the very step of the switch, or not
def test_slow_weights_follow_into_a_core_to_the_same_path(kind, delay_steps):
    """Without a cut, training goes the very way it goes without any method."""
    model, twin = square_model(), square_model()
    outer, plain = LOOKAHEADS[kind](sgd(model)), LOOKAHEADS[kind](sgd(twin))
    attach(model, outer, full_rank(delay_steps=delay_steps))
    data = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)
    for _ in range(9):
        for net, optimizer in ((model, outer), (twin, plain)):
            optimizer.zero_grad()
            net(data).square().mean().backward()
            optimizer.step()
    assert isinstance(model[0], LowRankLinear)
    for ours, theirs in ((model[0], twin[0]), (model[2], twin[2])):
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda inner: Lookahead(inner), "slow_params"),
        (lambda inner: Lookahead(inner, key="a_name_of_its_own"), "a_name_of_its_own"),
        (BareLookahead, "lookahead_slow_buff"),
    ],
)
def test_slow_weights_follow_into_a_pair_as_the_weights_they_are(build, key):
    model = square_model()
    with torch.no_grad():
        for p in model.parameters():
            p.abs_().add_(1.0)  # a copy without a negative entry is no second moment
    optimizer = build(torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))
    attach(model, optimizer, full_rank(bases="trained"))

    def step():
        optimizer.zero_grad()
        model(torch.eye(4, dtype=torch.float64)).square().mean().backward()
        optimizer.step()

    step()
    step()
    state = optimizer.state if isinstance(optimizer, Lookahead) else None
    holder = (lambda: state) if state is not None else (lambda: optimizer._base_optimizer.state)
    slow = holder()[model[0].weight][key].clone()
    assert bool((slow > 0).all())
    step()
    layer = model[0]
    assert isinstance(layer, LowRankLinear)
    pair = holder()[layer.pair][key]
    assert pair.shape == layer.pair.shape
    m = layer.out_features
    torch.testing.assert_close(pair[:, :m].T @ pair[:, m:], slow, rtol=0, atol=1e-9)


def test_what_is_loaded_through_the_wrapper_is_checked_before_the_next_step():
    model = small_model()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    attach(model, optimizer, Diary())
    for _ in range(2):
        backward(model)
        optimizer.step(lambda: backward(model))
    optimizer.base_optimizer.state[model[0].weight]["momentum_buffer"] = torch.zeros(2, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    backward(model)
    with pytest.raises(StateError, match="momentum_buffer"):
        optimizer.step(lambda: backward(model))


def test_sizes_copies_the_wrapper_that_it_was_given():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    optimizer = Lookahead(sgd(model))
    kinds = []

    def train_on(branch):
        kinds.append(type(branch.optimizer))
        for _ in range(2):
            branch.optimizer.zero_grad()
            branch.model(torch.ones(2, 16)).square().mean().backward()
            branch.optimizer.step()

    sizes(model, optimizer, [0.5], train_on=train_on)
    assert set(kinds) == {Lookahead}


def test_wrappers_are_freed_with_their_last_user():
    model = small_model()
    optimizer = Lookahead(sgd(model))
    handle = attach(model, optimizer, Idle())
    train(model, optimizer, steps=2)
    alive = [weakref.ref(thing) for thing in (model, optimizer, optimizer.inside, handle)]
    gc.collect()
    gc.disable()
    try:
        del model, optimizer, handle
        assert [ref() for ref in alive] == [None] * 4
    finally:
        gc.enable()


def test_detach_leaves_no_hook_on_any_of_them():
    model = small_model()
    optimizer = Lookahead(sgd(model))
    attach(model, optimizer, Diary()).detach()
    assert hook_counts(model, optimizer) == hook_counts(model, optimizer.inside) == {}


def test_the_private_names_of_hooks_still_exist():
    model = small_model()
    assert fires_step_hooks(sgd(model))
    assert not fires_step_hooks(BareLookahead(sgd(model)))
