"""EigenSubspace: the formula, orthonormal rows, and that methods act on ``u`` as a matrix."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import orthotrain
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers import EigenSubspace
from orthotrain.methods import select_parameters
from orthotrain.models import EigenGenerator
from reference.gradient_methods import defect
from reference.linalg import polar_factor
from reference.matrices import from_spectrum, generator, normal, shaken


def layer_of(num_basis=3, out_shape=(2, 4, 5), *, dtype=torch.float64, seed=0):
    return EigenSubspace(num_basis, out_shape=out_shape, generator=generator(seed), dtype=dtype)


# --- the formula ----------------------------------------------------------------------------------


def test_a_map_is_the_mean_and_each_direction_scaled_by_its_coordinate():
    layer, z = shaken(layer_of(), size=0.3), normal(7, 3)
    maps = layer(z)
    assert maps.shape == (7, 2, 4, 5)
    for row, phi in zip(z, maps, strict=True):
        expected = layer.mean.clone()
        for i in range(3):
            expected = expected + layer.scale[i] * row[i] * layer.u[i]
        torch.testing.assert_close(phi, expected.view(2, 4, 5), rtol=0, atol=1e-12)


def test_derivatives():
    layer = shaken(layer_of(2, (3,)), size=0.3)
    names = [name for name, _ in layer.named_parameters()]

    def run(z, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, z)

    inputs = (normal(4, 2).requires_grad_(), *layer.parameters())
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


# --- the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_basis", [1, 2, 6])
def test_start(num_basis):
    layer = layer_of(num_basis)
    assert layer.scale.tolist() == [3.0 * (num_basis - i) for i in range(num_basis)]
    assert torch.equal(layer.mean, torch.zeros(40, dtype=torch.float64))
    assert layer.u.shape == (num_basis, 40)


@pytest.mark.parametrize(
    ("dtype", "limit"),
    # Rounding to the dtype moves each of the k k inner products by about eps / sqrt(m).
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.05)],
    ids=str,
)
@pytest.mark.parametrize("shape", [(6,), (16, 4, 4)], ids=str)
def test_rows_start_orthonormal_in_every_dtype(dtype, limit, shape):
    layer = layer_of(6, shape, dtype=dtype)
    assert layer.u.dtype == layer.scale.dtype == layer.mean.dtype == dtype
    error = layer.orthonormality_error()
    assert error <= limit
    assert error.dtype == torch.float64
    assert not error.requires_grad


def test_the_generator_decides_the_start_and_global_state_stays():
    before = torch.get_rng_state()
    one, other = layer_of(), layer_of()
    assert torch.equal(one.u, other.u)
    assert not torch.equal(one.u, layer_of(seed=1).u)
    shaken(one, size=0.3)
    one.reset_parameters(generator=generator(0))
    assert torch.equal(torch.get_rng_state(), before)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_rows_of_many_draws_show_no_preferred_direction():
    total = sum(layer_of(2, (4,), seed=seed).u.detach() for seed in range(400))
    # A mean of 400 entries of variance 1/4 has standard deviation .025; five of them.
    assert (total / 400).abs().max() < 0.125


# --- orthonormality -------------------------------------------------------------------------------


def test_error_and_penalty_of_a_chosen_spectrum():
    s = (2.0, 1.0, 0.5)
    layer = layer_of()
    with torch.no_grad():
        layer.u.copy_(from_spectrum(s, 3, 40))
    squares = sum((value**2 - 1) ** 2 for value in s)
    assert layer.orthonormality_error().item() == pytest.approx(squares**0.5, rel=1e-12)
    assert layer.orthonormality_penalty().item() == pytest.approx(squares / 2, rel=1e-12)
    assert layer.orthonormality_penalty().item() == pytest.approx(defect(layer.u.detach()) / 2)


def test_penalty_is_differentiable_and_a_step_along_it_straightens():
    layer = shaken(layer_of(2, (5,)), size=0.3)
    assert gradcheck(lambda u: _penalty_at(layer, u), (layer.u,))
    optimizer = torch.optim.SGD([layer.u], lr=0.05)
    errors = []
    for _ in range(20):
        errors.append(float(layer.orthonormality_error()))
        optimizer.zero_grad()
        layer.orthonormality_penalty().backward()
        optimizer.step()
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def _penalty_at(layer, u):
    twin = copy.deepcopy(layer)
    del twin.u
    twin.u = u
    return twin.orthonormality_penalty()


def test_half_precision_and_autocast_do_not_coarsen_the_penalty():
    layer = layer_of(4, (16, 8, 8), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty, error = layer.orthonormality_penalty(), layer.orthonormality_error()
    # In bfloat16 the products alone would be off by 1e-3.
    assert penalty.dtype == torch.float32
    assert penalty < 1e-10
    assert error < 1e-5
    assert layer.bfloat16().orthonormality_penalty().dtype == torch.float32


# --- methods find it and act on it as a matrix ----------------------------------------------------


class Nets:
    """A generator with three subspaces of different sizes, its twin, and one step of SGD."""

    def __init__(self):
        model = EigenGenerator(32, noise_dim=0, num_basis=3, base_channels=2, channels=1)
        self.model = shaken(model.double(), size=0.05)
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def step(self, *methods):
        """One step at a rate of 0.1; the gradients as backward left them."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        handle = orthotrain.attach(self.model, optimizer, *methods)
        z = normal(5, self.model.latent_dim, seed=3)
        (self.model(z) * normal(5, 1, 32, 32, seed=4)).mean().mul(100).backward()
        gradients = {name: p.grad.clone() for name, p in self.model.named_parameters()}
        optimizer.step()
        return handle, gradients

    @property
    def subspaces(self):
        return [name for name in self.before if name.endswith(".u")]

    def after(self, name):
        return self.model.get_parameter(name).detach()


def test_the_pattern_finds_every_subspace_and_nothing_else():
    nets = Nets()
    found = [name for name, _ in select_parameters(nets.model, "*.u")]
    assert found == [f"blocks.{i}.subspace.u" for i in range(3)]
    shapes = [tuple(nets.model.get_parameter(name).shape) for name in found]
    assert shapes == [(3, 16 * 16), (3, 8 * 64), (3, 4 * 256)]


def assert_the_rest_took_a_plain_step(nets, gradients):
    for name, before in nets.before.items():
        if name not in nets.subspaces:
            torch.testing.assert_close(
                nets.after(name), before - 0.1 * gradients[name], rtol=0, atol=1e-13
            )


def test_nearest_orthogonal_gradient_takes_the_polar_factor_of_each_gradient():
    nets = Nets()
    handle, gradients = nets.step(orthotrain.NearestOrthogonalGradient("*.u", record_every=1))
    for name in nets.subspaces:
        r = polar_factor(gradients[name])
        torch.testing.assert_close(r @ r.mT, torch.eye(3, dtype=r.dtype), rtol=0, atol=1e-9)
        torch.testing.assert_close(
            nets.after(name), nets.before[name] - 0.1 * r, rtol=0, atol=1e-10
        )
    assert_the_rest_took_a_plain_step(nets, gradients)
    assert [record["layer"] for record in handle.records] == nets.subspaces
    assert all(record["update_condition"] == pytest.approx(1) for record in handle.records)


def test_orthogonal_penalty_adds_the_gradient_of_the_penalty_of_the_layer():
    nets = Nets()
    _, gradients = nets.step(orthotrain.OrthogonalPenalty("*.u", weight=0.5 * 0.7))
    for name in nets.subspaces:
        layer = layer_of(3, (nets.before[name].shape[1],))
        with torch.no_grad():
            layer.u.copy_(nets.before[name])
        (slope,) = torch.autograd.grad(0.7 * layer.orthonormality_penalty(), layer.u)
        assert slope.norm() > 0.1
        expected = nets.before[name] - 0.1 * (gradients[name] + slope)
        torch.testing.assert_close(nets.after(name), expected, rtol=0, atol=1e-12)
    assert_the_rest_took_a_plain_step(nets, gradients)


def test_a_layer_of_its_own_is_selected_by_its_parameter():
    layer = layer_of()
    model = nn.Sequential(layer)
    assert select_parameters(model, layer.u) == [("0.u", layer.u)]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("num_basis", "out_shape", "message"),
    [
        (0, (2, 2), r"from 1 to prod\(out_shape\) = 4, got 0"),
        (5, (2, 2), r"from 1 to prod\(out_shape\) = 4, got 5"),
        (1, (), r"positive sizes, got \(\)"),
        (1, (4, 0), r"positive sizes, got \(4, 0\)"),
        (1, (-2, -2), r"positive sizes, got \(-2, -2\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(num_basis, out_shape, message):
    with pytest.raises(ConfigError, match=message):
        EigenSubspace(num_basis, out_shape=out_shape)


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1)], ids=str)
def test_coordinates_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match=r"shape \(n, 3\), got"):
        layer_of()(torch.zeros(shape, dtype=torch.float64))
