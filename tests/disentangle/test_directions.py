"""SeFa and the Householder projector: closed forms, invariants under training."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn.utils import parametrize

from disentangle.generators import Normed, linear
from orthotrain.disentangle import (
    HouseholderProjector,
    activeness,
    householder_directions,
    householder_projection,
    householder_projector,
    random_rotation,
    reflection_product,
    rotated,
    sefa_directions,
)
from orthotrain.errors import ConfigError, NonFiniteError, RankError, ShapeError
from reference import generator_metrics as twins
from reference.matrices import from_spectrum, generator, orthonormal


def weight(latent=5, features=12, seed=0):
    return torch.randn(latent, features, generator=generator(seed), dtype=torch.float64)


# --- directions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 12), (5, 3), (4, 4), (1, 6), (6, 1)], ids=str)
def test_agrees_with_the_twin(shape):
    w = weight(*shape)
    directions, strengths = sefa_directions(w, latent_axis=0)
    values, projectors = twins.sefa(w)
    torch.testing.assert_close(strengths, values.clamp(min=0), rtol=0, atol=1e-12)
    for i, value in enumerate(values):
        # Null directions, of which there may be several, are arbitrary among each other.
        if value > 1e-9:
            found = torch.outer(directions[i], directions[i])
            torch.testing.assert_close(found, projectors[i], rtol=0, atol=1e-9)


def test_every_shape_gives_the_same():
    w = weight(5, 24)
    expected = sefa_directions(w, latent_axis=0)
    convolution = nn.ConvTranspose2d(5, 6, 2)
    assert convolution.weight.shape == (5, 6, 2, 2)
    for shaped, axis in (
        (w.mT.contiguous(), None),  # nn.Linear: (out, in)
        (w, None),  # EigenSubspace.u: (latent, features)
        (w.reshape(5, 6, 2, 2), None),  # nn.ConvTranspose2d: (in, out, kh, kw)
        (w.reshape(5, 6, 2, 2).movedim(0, 2), 2),
        (w.mT, -1),
    ):
        for a, b in zip(sefa_directions(shaped, latent_axis=axis), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_of_orthogonal_columns_are_the_columns_by_how_many_there_are():
    """Columns are scaled to one, so what counts is how many point somewhere, not how far."""
    q = orthonormal(3, 3, seed=1)
    columns = [2] * 4 + [0] * 2 + [1] * 1
    w = torch.stack([10.0**i * q[:, c] for i, c in enumerate(columns)], dim=1)
    directions, strengths = sefa_directions(w, latent_axis=0)
    assert strengths.tolist() == pytest.approx([4, 2, 1])
    for row, c in zip(directions, (2, 0, 1), strict=True):
        assert abs(float(row @ q[:, c])) == pytest.approx(1)


def test_signs_are_fixed():
    w = weight()
    directions, _ = sefa_directions(w, latent_axis=0)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()
    for turned in (sefa_directions(-w, latent_axis=0)[0], sefa_directions(3 * w, latent_axis=0)[0]):
        torch.testing.assert_close(turned, directions, rtol=0, atol=1e-12)
    # Equal entries of unequal sign: the first is positive, however rounding falls.
    for sign in (1, -1):
        tied = sign * torch.tensor([[1.0, 1.0], [-1.0 - 1e-9, -1.0]], dtype=torch.float64)
        assert (sefa_directions(tied, latent_axis=0)[0][:, 0] > 0).all()


def test_zero_columns_and_dtypes():
    w = torch.cat([weight(4, 6), torch.zeros(4, 3)], dim=1)
    expected = sefa_directions(weight(4, 6), latent_axis=0)
    for a, b in zip(sefa_directions(w, latent_axis=0), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for dtype in (torch.float32, torch.bfloat16):
        directions, strengths = sefa_directions(w.to(dtype).requires_grad_(), latent_axis=0)
        assert directions.dtype == strengths.dtype == dtype
        assert not directions.requires_grad
    directions, strengths = sefa_directions(torch.zeros(3, 4))
    assert strengths.tolist() == [0.0] * 3
    torch.testing.assert_close(directions @ directions.mT, torch.eye(3))


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(4,), (), (0, 3), (3, 0)], ids=str)
def test_wrong_shapes(shape):
    with pytest.raises(ShapeError, match="sefa_directions needs a weight"):
        sefa_directions(torch.zeros(shape))


@pytest.mark.bad_input
def test_wrong_input():
    with pytest.raises(ConfigError, match=r"torch\.int64"):
        sefa_directions(torch.zeros(3, 4, dtype=torch.int64))
    for axis in (2, -3, True):
        with pytest.raises(ConfigError, match="latent_axis"):
            sefa_directions(torch.zeros(3, 4), latent_axis=axis)
    # A square matrix does not tell which of its axes is the latent.
    with pytest.raises(ConfigError, match=r"latent_axis.*got None for shape \(4, 4\)"):
        sefa_directions(torch.eye(4))
    with pytest.raises(NonFiniteError, match=r"finite numbers.* in weight"):
        sefa_directions(torch.full((3, 4), torch.nan))


# --- turned generators ----------------------------------------------------------------------------


def test_a_coordinate_walks_along_its_direction():
    model = linear(3)
    directions, _ = sefa_directions(model.weight, latent_axis=0)
    turned = rotated(model, directions)
    for i in range(3):
        e = torch.eye(3, dtype=torch.float64)[i : i + 1]
        torch.testing.assert_close(turned(2.5 * e), model(2.5 * directions[i : i + 1]))


def test_sefa_leaves_the_set_of_images_unchanged():
    """Every image of the generator is one of the turned generator, at the turned-back latent."""
    model = Normed().eval().requires_grad_(False)
    directions, _ = sefa_directions(model.grow.weight)
    turned = rotated(model, directions)
    z = torch.randn(50, 3, generator=generator(2))
    torch.testing.assert_close(turned(z @ directions.mT), model(z), rtol=0, atol=1e-5)
    # And the turned latent is as normal: a rotation keeps its length.
    torch.testing.assert_close((z @ directions.mT).norm(dim=1), z.norm(dim=1))


def test_sefa_finds_the_axes_of_a_generator_whose_latent_was_turned():
    # Rows of unequal length in a basis of their own; all features have columns of length one.
    axes = torch.block_diag(torch.ones(1, 9), torch.ones(1, 6), torch.ones(1, 1)).double()
    q = random_rotation(3, seed=7)
    model = linear(3)
    with torch.no_grad():
        model.weight.copy_(q.mT @ axes)
    directions, strengths = sefa_directions(model.weight, latent_axis=0)
    assert strengths.tolist() == pytest.approx([9, 6, 1])
    found = activeness(rotated(model, directions), 3, seed=0, samples=3, value_range="any")
    assert found.tolist() == pytest.approx([4 * 9 / 16, 4 * 6 / 16, 4 / 16])


def test_coordinates_beyond_the_directions_stay():
    seen = []
    turned = rotated(lambda z: seen.append(z) or z[:, :, None, None], random_rotation(2, seed=0))
    z = torch.randn(4, 5, generator=generator(0))
    turned(z)
    assert torch.equal(seen[0][:, 2:], z[:, 2:])
    assert not torch.equal(seen[0][:, :2], z[:, :2])
    assert seen[0].dtype == torch.float32


def test_a_turned_module_is_still_measured_in_evaluation_mode():
    model = Normed()
    found = activeness(rotated(model, torch.eye(3)), 3, seed=0, samples=4)
    torch.testing.assert_close(found, activeness(model, 3, seed=0, samples=4))
    assert model.training


def test_random_rotation():
    q = random_rotation(6, seed=3)
    torch.testing.assert_close(q @ q.mT, torch.eye(6, dtype=torch.float64))
    assert torch.equal(q, random_rotation(6, seed=3))
    assert not torch.equal(q, random_rotation(6, seed=4))
    # Even over all rotations: no entry prefers a sign, which a plain QR does on its diagonal.
    entries = torch.stack([random_rotation(3, seed=s) for s in range(400)])
    assert entries.mean(dim=0).abs().max() < 4 * (1 / 3 / 400) ** 0.5
    torch.testing.assert_close(
        entries.square().mean(dim=0), torch.full((3, 3), 1 / 3).double(), rtol=0, atol=0.06
    )


def test_blocks_are_turned_by_themselves():
    q = random_rotation(5, seed=3, blocks=[2, 3])
    torch.testing.assert_close(q @ q.mT, torch.eye(5, dtype=torch.float64))
    assert q[:2, 2:].abs().max() == q[2:, :2].abs().max() == 0
    assert (q[:2, :2] != 0).all()
    assert (q[2:, 2:] != 0).all()


@pytest.mark.bad_input
def test_wrong_directions():
    for shape in ((3,), (2, 3), (0, 0)):
        with pytest.raises(ShapeError, match="rotated needs directions"):
            rotated(linear(), torch.zeros(shape))
    bad = from_spectrum([1, 1, 1.1], 3, 3)
    for directions in (bad, torch.full((2, 2), torch.nan)):
        with pytest.raises(ConfigError, match="orthogonal"):
            rotated(linear(), directions)
    with pytest.raises(ShapeError, match="d >= 3"):
        rotated(linear(), torch.eye(3))(torch.zeros(4, 2))
    with pytest.raises(ConfigError, match="dim"):
        random_rotation(0, seed=0)
    with pytest.raises(ConfigError, match=r"add up to 4 coordinates, got \[2, 3\]"):
        random_rotation(4, seed=0, blocks=[2, 3])
    with pytest.raises(ConfigError, match="a block"):
        random_rotation(4, seed=0, blocks=[4, 0])


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
    kind, words = (ConfigError, "got True") if rank is True else (RankError, "between 1 and 3")
    with pytest.raises(kind, match=words):
        householder_projection(made.weight, rank=rank)
    with pytest.raises(kind, match=words):
        householder_projector(made, rank=rank)
    assert made.weight is before


@pytest.mark.bad_input
def test_householder_wrong_input():
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
