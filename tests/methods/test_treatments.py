"""Orthogonal penalty, spectral normalization and retraction do what their formulas say."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from methods import lockstep
from methods.doubles import same, small_model
from methods.lockstep import KINDS, agree, make_layer, seeded
from orthotrain.errors import ConfigError, NonFiniteError, StateError
from orthotrain.linalg import polar_factor
from orthotrain.methods import (
    NearestOrthogonalGradient,
    OptimalLearningRate,
    OrthogonalPenalty,
    Retraction,
    SpectralNormalization,
    attach,
)
from reference.gradient_methods import Settings
from reference.matrices import from_spectrum

METHODS = {
    "penalty": ([OrthogonalPenalty("0", weight=0.05)], Settings(penalty=0.05)),
    "spectral": ([SpectralNormalization("0")], Settings(after="spectral")),
    "orthonormal": ([Retraction("0")], Settings(after="orthonormal")),
    "norm": ([Retraction("0", onto="norm")], Settings(after="norm")),
}
SUMS = {
    # Named out of order: the penalty is part of the gradient that NOG takes.
    "NOG + OL": (
        [NearestOrthogonalGradient("0"), OrthogonalPenalty("0", weight=0.05)],
        Settings(penalty=0.05, nog="gradient"),
    ),
    "NOG + OLR + SN": (
        [
            SpectralNormalization("0"),
            OptimalLearningRate("0"),
            NearestOrthogonalGradient("0", scale="rms"),
        ],
        Settings(nog="gradient", scale="rms", olr="vector", after="spectral"),
    ),
    "NOG on the update, norm held": (
        [Retraction("0", onto="norm"), NearestOrthogonalGradient("0", when="update")],
        Settings(nog="update", after="norm"),
    ),
}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("row", METHODS.values(), ids=METHODS)
def test_every_layer_in_lockstep_with_the_twin(kind, row):
    agree(lockstep.lockstep(kind, *row, sgd, steps=5))


@pytest.mark.parametrize("kind", ["linear", "grouped"])
@pytest.mark.parametrize("row", SUMS.values(), ids=SUMS)
def test_sums_in_lockstep_with_the_twin(kind, row):
    agree(lockstep.lockstep(KINDS[kind], *row, sgd))


def step_once(method, weight, **options):
    return lockstep.one_step(method, weight, torch.zeros_like(weight), **options)


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
def test_the_penalty_lowers_the_defect_alone(shape):
    weight = seeded(shape, 1)
    after, handle = step_once(OrthogonalPenalty("0", weight=1e-3), weight)
    small = after.mT @ after if shape[0] > shape[1] else after @ after.mT
    before = weight.mT @ weight if shape[0] > shape[1] else weight @ weight.mT
    eye = torch.eye(min(shape), dtype=weight.dtype)
    assert float((small - eye).norm()) < float((before - eye).norm())
    assert f"is {float((small - eye).norm()):.3g} at most" in str(handle.summary())


def test_the_penalty_is_lowered_when_the_loss_is_maximized():
    weight = seeded((4, 4), 1)
    expected, _ = step_once(OrthogonalPenalty("0", weight=1e-3), weight)
    after, _ = step_once(
        OrthogonalPenalty("0", weight=1e-3),
        weight,
        optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr, maximize=True),
    )
    torch.testing.assert_close(after, expected)


def test_the_penalty_is_not_scaled_by_grad_scaler():
    weights = []
    for scale in (1.0, 1024.0):
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
        attach(model, optimizer, OrthogonalPenalty("0", weight=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale((model(seeded((6, 3), 9, torch.float32)) ** 2).mean()).backward()
        scaler.step(optimizer)
        weights.append(model[0].weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)


def test_the_penalty_leaves_a_weight_without_gradient():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, OrthogonalPenalty("*.weight", weight=1.0))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert same(before, [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_spectral_norm_is_one_to_rounding(dtype):
    weight = from_spectrum([7.0, 6.99, 0.1], 5, 4).to(dtype)
    after, _ = step_once(SpectralNormalization("0"), weight)
    largest = float(torch.linalg.matrix_norm(after.double(), 2))
    assert largest == pytest.approx(1, abs=4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(after, weight / 7)


def test_the_nearest_multiple_keeps_the_mean_of_the_singular_values():
    weight = from_spectrum([4.0, 2.0, 0.0], 5, 3)
    after, _ = step_once(Retraction("0"), weight)
    torch.testing.assert_close(
        torch.linalg.svdvals(after), torch.full((3,), 2.0, dtype=weight.dtype)
    )
    again, _ = step_once(Retraction("0"), after)
    torch.testing.assert_close(again, after)


def test_onto_the_polar_factor_every_singular_value_is_one():
    weight = from_spectrum([4.0, 2.0, 0.5], 5, 3)
    after, _ = step_once(Retraction("0", onto="polar"), weight)
    torch.testing.assert_close(after, polar_factor(weight))
    deficient, _ = step_once(Retraction("0", onto="polar"), from_spectrum([4.0, 2.0, 0.0], 5, 3))
    torch.testing.assert_close(torch.linalg.svdvals(deficient), torch.ones(3, dtype=weight.dtype))


@pytest.mark.parametrize(
    "method",
    [SpectralNormalization("0"), Retraction("0"), Retraction("0", onto="polar")],
    ids=repr,
)
def test_a_zero_weight_stays_zero(method):
    after, _ = step_once(method, torch.zeros(3, 4))
    assert torch.equal(after, torch.zeros(3, 4))


def test_the_norm_held_is_that_of_the_weights_that_were_loaded():
    model = small_model()
    state = copy.deepcopy(model.state_dict())
    state["0.weight"] *= 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, Retraction("0", onto="norm"))
    model.load_state_dict(state)
    (model(seeded((6, 3), 9, torch.float32)) ** 2).mean().backward()
    optimizer.step()
    held = float(state["0.weight"].norm())
    assert float(model[0].weight.detach().norm()) == pytest.approx(held)
    assert f"0 at {held:.4g}" in str(handle.summary())


def test_a_channels_last_weight_keeps_its_format():
    layer = make_layer(KINDS["convolution"]).to(memory_format=torch.channels_last)
    twin = make_layer(KINDS["convolution"])
    for module in (layer, twin):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        attach(module, optimizer, SpectralNormalization("weight"))
        optimizer.step()
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.weight, twin.weight)


# --- what cannot work -------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_needs_a_positive_weight(weight):
    with pytest.raises(ConfigError, match="OrthogonalPenalty needs weight to be a"):
        OrthogonalPenalty("0", weight=weight)


@pytest.mark.bad_input
def test_settings_and_weights_that_cannot_be():
    with pytest.raises(ConfigError, match="onto to be one of orthonormal, polar, norm"):
        Retraction("0", onto="sphere")
    model = small_model()
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ConfigError, match="weight of 2 is zero"):
        attach(model, sgd(model.parameters()), Retraction(["0", "2"], onto="norm"))
    with pytest.raises(ConfigError, match="LBFGS"):
        attach(model, torch.optim.LBFGS(model.parameters()), OrthogonalPenalty("0", weight=1.0))
    for method in (SpectralNormalization, Retraction):
        with pytest.raises(ConfigError, match="is no matrix"):
            attach(model, sgd(model.parameters()), method("*.bias"))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "method", [SpectralNormalization("0"), Retraction("0"), Retraction("0", onto="norm")], ids=repr
)
def test_a_bad_weight_is_named(method):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    attach(model, optimizer, method)
    model[0].weight.grad = torch.full((4, 3), float("nan"))
    with pytest.raises(NonFiniteError, match="weight of 0 holds NaN"):
        optimizer.step()


@pytest.mark.bad_input
def test_the_penalty_names_a_weight_that_is_not_finite():
    model = small_model()
    optimizer = sgd(model.parameters())
    attach(model, optimizer, OrthogonalPenalty("0", weight=1.0))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    with pytest.raises(NonFiniteError, match="OrthogonalPenalty: the weight of 0 holds NaN"):
        optimizer.step()


@pytest.mark.bad_input
def test_the_norms_of_other_layers_are_refused():
    model = small_model()
    handle = attach(model, sgd(model.parameters()), Retraction("0", onto="norm"))
    with pytest.raises(StateError, match=r"norms of \['0'\]"):
        handle.load_state_dict({"step": 1, "methods": {"retraction": {"norms": {"2": 1.0}}}})
