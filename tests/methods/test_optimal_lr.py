"""OLR: the closed forms are minimisers, and a shortened step is a step with that learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from methods import lockstep
from methods.doubles import small_model
from methods.lockstep import KINDS, agree, seeded
from orthotrain.errors import ConfigError, ShapeError, StateError
from orthotrain.methods import (
    NearestOrthogonalGradient,
    OptimalLearningRate,
    attach,
    optimal_lr,
    optimal_lr_matrix,
)
from reference import gradient_methods as reference
from reference.gradient_methods import Settings
from reference.matrices import orthonormal

OPTIMIZERS = {
    "SGD momentum decay": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.3, weight_decay=0.1),
    "tensor lr": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.3), momentum=0.5, foreach=False),
}
DECAY = OPTIMIZERS["SGD momentum decay"]
# A grid and golden sections find an optimum to the root of rounding.
CLOSE = 2e-6


# --- the closed form --------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_the_vector_optimum_is_the_twins(seed, scale):
    w, g = seeded((3, 4), seed), scale * seeded((3, 4), seed + 1)
    expected = reference.optimal_lr(w, g)
    assert optimal_lr(w, g) == (None if expected is None else pytest.approx(expected, rel=1e-9))


def test_it_minimises_the_expansion_to_second_order():
    w, g = seeded((4, 3), 1), seeded((4, 3), 2)
    g = g if float((w * g).sum()) > 0 else -g
    ww, lw, ll = (float((a * b).sum()) for a, b in ((w, w), (w, g), (g, g)))
    # |w - e l|^4 = (ww - 2 e lw + e^2 ll)^2, cut after e^2.
    slope = -4 * ww * lw + 2 * (4 * lw**2 + 2 * ww * ll) * optimal_lr(w, g)
    assert slope == pytest.approx(0, abs=1e-9 * ww * abs(lw))


def test_it_is_a_plain_number_without_a_graph():
    w = seeded((4, 3), 1, torch.float32).requires_grad_()
    eta = optimal_lr(w, w.detach())
    assert type(eta) is float
    assert eta == pytest.approx(1 / 3)
    assert type(optimal_lr_matrix(w, w.detach())) is float


@pytest.mark.parametrize("a", [1e-30, 1e30])
def test_it_scales_as_weight_over_gradient(a):
    w, g = seeded((4, 3), 1, torch.float32), seeded((4, 3), 3, torch.float32)
    g = g if float((w * g).sum()) > 0 else -g
    assert optimal_lr(a * w, g) == pytest.approx(a * optimal_lr(w, g), rel=1e-5)
    assert optimal_lr(w, a * g) == pytest.approx(optimal_lr(w, g) / a, rel=1e-5)


@pytest.mark.parametrize("function", [optimal_lr, optimal_lr_matrix])
@pytest.mark.parametrize(
    ("w", "g"),
    [
        (torch.ones(2, 2), torch.zeros(2, 2)),
        (torch.ones(2, 2), torch.full((2, 2), math.nan)),
        (torch.full((2, 2), math.inf), torch.ones(2, 2)),
    ],
    ids=["zero gradient", "NaN", "infinity"],
)
def test_none_where_there_is_no_optimum(function, w, g):
    assert function(w, g) is None


def test_none_where_the_vector_optimum_is_not_positive():
    assert optimal_lr(torch.zeros(2, 2), torch.ones(2, 2)) is None
    assert optimal_lr(torch.ones(2, 2), -torch.ones(2, 2)) is None
    assert optimal_lr(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) is None


@pytest.mark.bad_input
@pytest.mark.parametrize("function", [optimal_lr, optimal_lr_matrix])
def test_bad_pairs(function):
    with pytest.raises(ShapeError, match="one shape"):
        function(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ConfigError, match="floating-point"):
        function(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="floating-point"):
        function(torch.ones(2, 3, dtype=torch.complex64), torch.ones(2, 3, dtype=torch.complex64))


# --- the quartic ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", [(3, 3), (6, 2), (2, 6)])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.02, 0.1), (0.0, 10.0)])
def test_the_matrix_optimum_is_the_least_defect_on_the_interval(seed, shape, interval):
    low, high = interval
    w, g = seeded(shape, seed), seeded(shape, 100 + seed)
    eta = optimal_lr_matrix(w, g, at_least=low, at_most=high)
    expected = reference.optimal_lr_matrix([w], [g], low=low, high=high)
    assert low <= eta <= high
    ours, best = reference.defect(w - eta * g), reference.defect(w - expected * g)
    assert ours <= best * (1 + 1e-9)
    assert eta == pytest.approx(expected, abs=1e-6 * high) or ours < best


def test_of_two_valleys_it_takes_the_deeper():
    # The defect of 2.2 - eta along one entry: zero at 1.2 and again at 3.2.
    w, g = torch.tensor([[2.2]]), torch.tensor([[1.0]])
    assert optimal_lr_matrix(w, g, at_most=2.0) == pytest.approx(1.2)
    assert optimal_lr_matrix(w, g, at_least=2.0) == pytest.approx(3.2)
    two = [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([2.2, 1.0], [1.0, 0.1])]
    expected = reference.optimal_lr_matrix(two[:1], two[1:], low=0.0, high=5.0)
    assert optimal_lr_matrix(*two, at_most=5.0) == pytest.approx(expected, abs=1e-6)


def test_a_batch_has_one_rate_for_all_its_matrices():
    w, g = seeded((2, 4, 3), 3), seeded((2, 4, 3), 4)
    eta = optimal_lr_matrix(w, g, at_most=1.0)
    expected = reference.optimal_lr_matrix(list(w), list(g), low=0.0, high=1.0)
    assert eta == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_at_an_orthonormal_weight_the_least_step_is_best(shape):
    w = orthonormal(6, 4, seed=1)
    w = w if shape == (6, 4) else w.mT
    g = seeded(shape, 2)
    assert optimal_lr_matrix(w, g, at_most=0.1) == pytest.approx(0, abs=1e-12)
    assert optimal_lr_matrix(w, g, at_least=0.01, at_most=0.1) == 0.01


@pytest.mark.parametrize("scale", [1e-90, 1e-12, 1e12, 1e90])
def test_the_quartic_stands_gradients_of_any_size(scale):
    w, g = 2 * torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    eta = optimal_lr_matrix(w, scale * g, at_most=2 / scale)
    assert eta == pytest.approx(1 / scale, rel=1e-9, abs=0)


@pytest.mark.bad_input
def test_bad_intervals_and_vectors():
    w = torch.eye(2)
    for interval in ({"at_least": -1.0}, {"at_least": 2.0, "at_most": 1.0}, {"at_most": math.nan}):
        with pytest.raises(ConfigError, match=r"at_least <= at_most|to be a number, got nan"):
            optimal_lr_matrix(w, w, **interval)
    with pytest.raises(ShapeError, match="batch"):
        optimal_lr_matrix(torch.ones(3), torch.ones(3))


# --- ten steps beside the twin ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("target", ["vector", "matrix"])
@pytest.mark.parametrize("direction", ["gradient", "update"])
def test_every_layer_in_lockstep_with_the_twin(kind, target, direction):
    method = OptimalLearningRate("0", target=target, direction=direction, floor=0.1)
    twin = Settings(olr=target, direction=direction, floor=0.1)
    agree(lockstep.lockstep(kind, [method], twin, DECAY), within=CLOSE)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("when", ["gradient", "update"])
@pytest.mark.parametrize("direction", ["gradient", "update"])
def test_after_nog_in_lockstep_with_the_twin(optimizer, when, direction):
    # Named in the wrong order on purpose: the phase decides.
    methods = [
        OptimalLearningRate("0", direction=direction),
        NearestOrthogonalGradient("0", when=when, scale="gradient_norm"),
    ]
    twin = Settings(nog=when, scale="gradient_norm", olr="vector", direction=direction)
    agree(lockstep.lockstep(KINDS["linear"], methods, twin, optimizer), within=CLOSE)


# --- the method -------------------------------------------------------------------------------


def one_step(weight, gradient, *, lr, optimizer=torch.optim.SGD, **settings):
    method = OptimalLearningRate("0", record_every=1, **settings)
    return lockstep.one_step(method, weight, gradient, lr=lr, optimizer=optimizer)


def pair():
    w, g = seeded((4, 3), 1), seeded((4, 3), 2)
    return w, g if float((w * g).sum()) > 0 else -g


def test_the_step_is_one_with_the_optimal_learning_rate():
    w, g = pair()
    eta = optimal_lr(w, g)
    after, handle = one_step(w, g, lr=10 * eta)
    torch.testing.assert_close(after, w - eta * g)
    (record,) = handle.records
    cosine = float((w * g).sum() / (w.norm() * g.norm()))
    assert record == {
        "step": 1,
        "method": "optimal_learning_rate",
        "layer": "0",
        "eta": pytest.approx(eta),
        "optimum": pytest.approx(eta),
        "lr": pytest.approx(10 * eta),
        "used": True,
        "cosine": pytest.approx(cosine),
        "used_share": 1.0,
    }
    assert "used in 100.0% of 1 steps, there 0.1 of" in str(handle.summary())


def test_the_share_counts_the_steps_between_records():
    w, g = pair()
    eta = optimal_lr(w, g)
    layer = nn.Linear(3, 4, bias=False).double()
    layer.weight = nn.Parameter(w.clone())
    optimizer = torch.optim.SGD(layer.parameters(), lr=10 * eta)
    handle = attach(layer, optimizer, OptimalLearningRate("weight", record_every=3))
    for direction in (g, -g, -g):  # a step that lengthens the weight stays
        layer.weight.grad = direction.clone()
        optimizer.step()
    (record,) = handle.records
    assert (record["used"], record["used_share"]) == (False, pytest.approx(1 / 3))


def test_a_smaller_learning_rate_stays_to_the_last_bit():
    w, g = pair()
    lr = 0.9 * optimal_lr(w, g)
    after, handle = one_step(w, g, lr=lr)
    assert torch.equal(after, w - lr * g) or torch.equal(after, torch.add(w, g, alpha=-lr))
    assert (handle.records[0]["used"], handle.records[0]["eta"]) == (False, None)
    assert handle.records[0]["optimum"] == pytest.approx(lr / 0.9)


def test_a_gradient_step_that_lengthens_the_weight_stays():
    w, g = pair()
    after, handle = one_step(w, -g, lr=5.0)
    assert torch.equal(after, torch.add(w, g, alpha=5.0))
    assert handle.records[0]["optimum"] is None
    assert handle.records[0]["cosine"] < 0


def test_the_floor_holds():
    w, g = pair()
    lr = 100 * optimal_lr(w, g)
    after, handle = one_step(w, g, lr=lr, floor=0.25)
    torch.testing.assert_close(after, w - 0.25 * lr * g)
    assert handle.records[0]["eta"] == pytest.approx(0.25 * lr)
    assert handle.records[0]["optimum"] == pytest.approx(lr / 100)


def test_an_orthonormal_weight_stops_without_a_floor_and_goes_on_with_one():
    w = orthonormal(6, 4, seed=1)
    g = seeded((6, 4), 2)
    after, handle = one_step(w, g, lr=0.1, target="matrix")
    torch.testing.assert_close(after, w, rtol=0, atol=1e-12)
    assert "stops training" in handle.plan
    after, _ = one_step(w, g, lr=0.1, target="matrix", floor=0.2)
    torch.testing.assert_close(after, w - 0.02 * g)


def test_the_vector_rule_does_not_keep_an_orthonormal_weight():
    w = orthonormal(64, 27, seed=1)
    g = 10 * seeded((64, 27), 2)
    g = g if float((w * g).sum()) > 0 else -g
    after, _ = one_step(w, g, lr=10.0)
    assert reference.defect(w) < 1e-20
    assert reference.defect(after) > 1e-8
    kept, _ = one_step(w, g, lr=10.0, target="matrix")
    assert reference.defect(kept) < 1e-20


def test_maximizing_turns_the_direction():
    w, g = pair()
    eta = optimal_lr(w, g)

    def ascent(p, lr):
        return torch.optim.SGD(p, lr=lr, maximize=True)

    after, _ = one_step(w, -g, lr=10 * eta, optimizer=ascent)
    torch.testing.assert_close(after, w - eta * g)


@pytest.mark.parametrize("direction", ["gradient", "update"])
@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)])
def test_a_learning_rate_of_zero_is_no_step(lr, direction):
    w, g = pair()
    after, handle = one_step(w, g, lr=lr, direction=direction)
    assert torch.equal(after, w)
    assert handle.records == []


def test_a_bad_gradient_is_left_to_the_optimizer():
    w, g = pair()
    g[0, 0] = math.nan
    after, handle = one_step(w, g, lr=1.0)
    assert int(after.isnan().sum()) == 1
    record = handle.records[0]
    assert (record["used"], record["optimum"], record["cosine"]) == (False, None, None)


def test_only_the_named_weight_is_shortened():
    models = [small_model() for _ in range(2)]
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
        if model is models[0]:
            attach(model, optimizer, OptimalLearningRate("0"))
        (model(seeded((6, 3), 9, torch.float32)) ** 2).mean().backward()
        optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True)]
    assert same == [False, True, True, True]


# --- what cannot work -------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"target": "norm"}, "target to be one of vector, matrix"),
        ({"direction": "momentum"}, "direction to be one of gradient, update"),
        ({"floor": 1.0}, r"floor to be a share in \[0, 1\)"),
        ({"floor": -0.1}, r"floor to be a share in \[0, 1\)"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(chosen, message):
    with pytest.raises(ConfigError, match=message):
        OptimalLearningRate("0", **chosen)


@pytest.mark.bad_input
def test_runs_that_cannot_be():
    model = small_model()
    with pytest.raises(ConfigError, match="no module or parameter matches"):
        attach(model, DECAY(model.parameters()), OptimalLearningRate("conv1"))
    with pytest.raises(ConfigError, match="LBFGS"):
        attach(model, torch.optim.LBFGS(model.parameters()), OptimalLearningRate("0"))

    class NoRate(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

    with pytest.raises(ConfigError, match="no 'lr'"):
        attach(model, NoRate(model.parameters()), OptimalLearningRate("0"))


def test_the_summary_goes_on_where_the_state_was_saved():
    w, g = pair()
    _, handle = one_step(w, g, lr=10 * optimal_lr(w, g))
    _, again = one_step(w, -g, lr=0.1)
    again.load_state_dict(handle.state_dict())
    assert again.summary().notes == handle.summary().notes
    assert again.state_dict() == handle.state_dict()


@pytest.mark.bad_input
def test_the_state_of_something_else_is_refused():
    model = small_model()
    handle = attach(model, DECAY(model.parameters()), OptimalLearningRate("0"))
    with pytest.raises(StateError, match="'steps'"):
        handle.load_state_dict({"step": 1, "methods": {"optimal_learning_rate": {"eta": 1.0}}})
