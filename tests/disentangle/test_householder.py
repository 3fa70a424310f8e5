"""Householder projector: reflections, the weight they hold, and that training keeps its form."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn.utils import parametrize

from orthotrain.disentangle import (
    HouseholderProjector,
    householder_directions,
    householder_projection,
    householder_projector,
    reflection_product,
)
from orthotrain.errors import ConfigError, NonFiniteError, RankError, ShapeError
from reference import generator_metrics as twins
from reference.matrices import from_spectrum, generator, orthonormal


def vectors(n, k, seed=0):
    return torch.randn(n, k, generator=generator(seed), dtype=torch.float64)


def layer(kind, spectrum=(3.0, 2.0, 1.0)):
    """A layer whose weight has these singular values as (latent, features), 3 latents."""
    w = from_spectrum(spectrum, 3, 8, seed=1)
    made = nn.Linear(3, 8) if kind == "linear" else nn.ConvTranspose2d(3, 2, 2)
    shaped = w.mT if kind == "linear" else w.reshape(3, 2, 2, 2)
    made.weight = nn.Parameter(shaped.contiguous())
    made.bias = nn.Parameter(made.bias.detach().double())
    return made


def as_matrix(weight):
    return weight.mT if weight.ndim == 2 else weight.flatten(1)


both_kinds = pytest.mark.parametrize("kind", ["linear", "transposed"])


# --- reflections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5, 5), (4, 7), (1, 1)], ids=str)
def test_product_agrees_with_the_twin(shape):
    v = vectors(*shape)
    expected = twins.reflections(v)
    columns = shape[0]
    torch.testing.assert_close(reflection_product(v, columns=columns), expected, rtol=0, atol=1e-14)
    few = min(shape)
    torch.testing.assert_close(
        reflection_product(v, columns=few), expected[:, :few], rtol=0, atol=1e-14
    )


def test_columns_are_orthonormal_whatever_the_vectors():
    for scale in (1e-8, 1.0, 1e8):
        q = reflection_product(scale * vectors(9, 4))
        torch.testing.assert_close(q.mT @ q, torch.eye(4).double(), rtol=0, atol=1e-14)


def test_derivative():
    assert gradcheck(lambda v: reflection_product(v, columns=2), vectors(4, 3).requires_grad_())


@pytest.mark.bad_input
def test_wrong_vectors():
    for shape in ((3,), (0, 2), (2, 0)):
        with pytest.raises(ShapeError, match="reflection_product needs vectors"):
            reflection_product(torch.zeros(shape))
    for columns in (0, 6):
        with pytest.raises(ShapeError, match="columns between 1 and 5"):
            reflection_product(vectors(5, 3), columns=columns)


# --- the projected weight -------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1]),
        ({"rank": 2}, [1, 1, 0]),
        ({"scales": "mean"}, [2, 2, 2]),
        ({"scales": "mean", "rank": 2}, [2.5, 2.5, 0]),
        ({"scales": "singular"}, [3, 2, 1]),
        ({"scales": "singular", "rank": 1}, [3, 0, 0]),
    ],
    ids=str,
)
def test_singular_values(kind, settings, expected):
    weight = layer(kind).weight.detach()
    projected = householder_projection(weight, **settings)
    assert projected.shape == weight.shape
    s = torch.linalg.svdvals(as_matrix(projected))
    assert s.tolist() == pytest.approx(expected, abs=1e-12)
    # The directions are those of the weight.
    gram = as_matrix(weight) @ as_matrix(weight).mT
    other = as_matrix(projected) @ as_matrix(projected).mT
    torch.testing.assert_close(gram @ other, other @ gram, rtol=0, atol=1e-12)


@both_kinds
def test_singular_scales_at_full_rank_change_nothing(kind):
    weight = layer(kind).weight.detach()
    torch.testing.assert_close(
        householder_projection(weight, scales="singular"), weight, rtol=0, atol=1e-13
    )


def test_latent_axis_and_dtype():
    w = from_spectrum([3, 2, 1], 3, 8)
    expected = householder_projection(w.mT)
    turned = householder_projection(w, latent_axis=0).mT
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-13)
    half = householder_projection(w.bfloat16(), latent_axis=0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double().mT, expected, rtol=0, atol=1e-2)


# --- the layer ------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("settings", [{}, {"rank": 2}, {"scales": "mean"}, {"scales": "singular"}])
def test_layer_starts_at_the_projected_weight(kind, settings):
    made = layer(kind)
    expected = householder_projection(made.weight.detach(), **settings)
    assert householder_projector(made, **settings) is made
    torch.testing.assert_close(made.weight, expected, rtol=0, atol=1e-13)
    names = [name for name, _ in made.named_parameters()]
    assert names == [
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ]


@pytest.mark.parametrize(
    "weight", [torch.eye(3), -torch.eye(3), orthonormal(3, 3, seed=0), torch.eye(3)[:, :1]], ids=str
)
def test_weights_that_need_no_reflection(weight):
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight.double())
    householder_projector(made, latent_axis=1)
    torch.testing.assert_close(made.weight.detach(), weight.double(), rtol=0, atol=1e-14)


@both_kinds
def test_training_keeps_the_form(kind):
    """Adam may do what it likes: the singular values stay, and the weight moves."""
    made = householder_projector(layer(kind), rank=2)
    start = made.weight.detach().clone()
    x = torch.randn(16, 3, generator=generator(3), dtype=torch.float64)
    x = x if kind == "linear" else x[:, :, None, None]
    goal = layer(kind, spectrum=(1.0, 0.9, 0.8))(x).detach().roll(1, dims=1)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = (made(x) - goal).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        s = torch.linalg.svdvals(as_matrix(made.weight.detach()))
        assert s.tolist() == pytest.approx([1, 1, 0], abs=1e-12)
    assert losses[-1] < 0.8 * losses[0]
    assert (made.weight - start).norm() > 0.1


def test_state_round_trip_and_copies():
    made = householder_projector(layer("linear"), rank=2, scales="singular")
    with torch.no_grad():
        made.parametrizations.weight.original0 += 0.3
    other = householder_projector(layer("linear", spectrum=(5.0, 4.0, 3.0)), rank=2)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.weight, made.weight)
    assert torch.equal(copy.deepcopy(made).weight, made.weight)
    kept = made.weight.detach().clone()
    parametrize.remove_parametrizations(made, "weight")
    assert torch.equal(made.weight, kept)
    assert "rank=2, scales='one'" in repr(other)


@pytest.mark.bad_input
@pytest.mark.parametrize("rank", [0, 4, -1, True])
def test_wrong_rank(rank):
    made = layer("linear")
    before = made.weight
    with pytest.raises(RankError, match="rank between 1 and 3"):
        householder_projection(made.weight, rank=rank)
    with pytest.raises(RankError, match="rank between 1 and 3"):
        householder_projector(made, rank=rank)
    assert made.weight is before


@pytest.mark.bad_input
def test_wrong_input():
    with pytest.raises(ConfigError, match="scales"):
        householder_projection(torch.eye(3), scales="none")
    with pytest.raises(ConfigError, match="scales"):
        HouseholderProjector(scales="none")
    with pytest.raises(ConfigError, match="'kernel' of Linear, got NoneType"):
        householder_projector(layer("linear"), "kernel")
    with pytest.raises(NonFiniteError):
        householder_projection(torch.full((3, 4), torch.inf))
    broken = layer("linear")
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        householder_projector(broken)


# --- its directions -------------------------------------------------------------------------------


@both_kinds
def test_along_a_direction_one_column_moves_as_far_as_its_scale_says(kind):
    made = householder_projector(layer(kind), scales="singular")
    with torch.no_grad():
        made.parametrizations.weight.original0 += 0.3
        made.parametrizations.weight.original1 += 0.2
    directions = householder_directions(made)
    torch.testing.assert_close(
        directions @ directions.mT, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-13
    )
    moves = directions @ as_matrix(made.weight.detach())
    gram = moves @ moves.mT
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-12)
    assert gram.diagonal().sqrt().tolist() == pytest.approx([3, 2, 1], abs=1e-12)


@pytest.mark.bad_input
def test_directions_of_a_weight_that_is_free():
    with pytest.raises(ConfigError, match="'weight' of Linear to be held by reflections"):
        householder_directions(layer("linear"))
    free = layer("linear")
    parametrize.register_parametrization(free, "weight", nn.Identity())
    with pytest.raises(ConfigError, match="to be held by reflections"):
        householder_directions(free)
