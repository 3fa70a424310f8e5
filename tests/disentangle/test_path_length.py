"""Path length: paths on the right sphere, and a closed form for linear generators."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck

from disentangle.generators import linear
from orthotrain.disentangle import FeatureSpace, path_length, pixel_features, slerp
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from reference import generator_metrics as twins
from reference.matrices import from_spectrum, generator


def pair(dim, n=1, seed=0):
    random = generator(seed)
    return (torch.randn(n, dim, generator=random, dtype=torch.float64) for _ in range(2))


# --- the path -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 64])
@pytest.mark.parametrize("t", [0.0, 1e-4, 0.3, 0.5, 1.0])
def test_slerp_agrees_with_the_twin(dim, t):
    a, b = pair(dim)
    found = slerp(a, b, torch.tensor([t], dtype=torch.float64))
    torch.testing.assert_close(found[0], twins.slerp(a[0], b[0], t), rtol=0, atol=1e-12)


def test_ends_are_ends_and_the_radius_goes_evenly():
    a, b = pair(8, n=20)
    for t in (0.0, 1.0):
        end = slerp(a, b, torch.full((20,), t, dtype=torch.float64))
        torch.testing.assert_close(end, (a, b)[int(t)], rtol=0, atol=1e-13)
    radii = [
        slerp(a, b, torch.full((20,), t, dtype=torch.float64)).norm(dim=1)
        for t in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for low, middle, high in zip(radii, radii[1:], radii[2:], strict=False):
        torch.testing.assert_close(middle, (low + high) / 2)


def test_directions_turn_evenly():
    a, b = pair(5, n=10)
    points = [slerp(a, b, torch.full((10,), k / 6, dtype=torch.float64)) for k in range(7)]
    unit = [x / x.norm(dim=1, keepdim=True) for x in points]
    cosines = torch.stack([(x * y).sum(dim=1) for x, y in itertools.pairwise(unit)])
    torch.testing.assert_close(cosines, cosines[:1].expand_as(cosines), rtol=0, atol=1e-12)


@pytest.mark.parametrize("turn", [0.0, 1e-18, 1e-9, 1e-5])
def test_nearly_parallel_vectors(turn):
    a = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[4 * math.cos(turn), 4 * math.sin(turn)]], dtype=torch.float64)
    found = slerp(a, b, torch.tensor([0.25], dtype=torch.float64))[0]
    expected = [2.5 * math.cos(turn / 4), 2.5 * math.sin(turn / 4)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-18)


@pytest.mark.bad_input
def test_slerp_refuses_vectors_without_one_path_between_them():
    a, half = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 0.5])
    zero = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    for pair_with_zero in ((a, zero), (zero, a)):
        with pytest.raises(ConfigError, match="vectors that are not zero"):
            slerp(*pair_with_zero, half)
    with pytest.raises(ConfigError, match="not opposite"):
        slerp(a, -2 * a, half)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_slerp_of_vectors_whose_square_leaves_the_dtype(scale):
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, -1.0])
    found = slerp(scale * a, scale * b, torch.tensor(0.3))
    torch.testing.assert_close(found / scale, slerp(a, b, torch.tensor(0.3)))


def test_slerp_is_differentiable():
    a, b = (x.requires_grad_() for x in pair(4, n=3))
    assert gradcheck(slerp, (a, b, torch.rand(3, generator=generator(0)).double()))


@pytest.mark.bad_input
def test_slerp_of_wrong_shapes():
    for a, b, t in (((2, 3), (3, 3), (2,)), ((2, 3), (2, 3), (3,)), ((), (), ())):
        with pytest.raises(ShapeError, match="slerp needs"):
            slerp(torch.zeros(a), torch.zeros(b), torch.zeros(t))


# --- the length -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 6])
def test_of_a_linear_generator_in_pixels_has_a_closed_form(dim):
    """``E |A s'|^2 = |A|_F^2 E |s'|^2 / d``: the path looks the same from every side."""
    model = linear(dim, (1, 4, 4))
    with torch.no_grad():
        model.weight.copy_(from_spectrum([2.0] + [0.5] * (dim - 1), dim, 16))
    found = path_length(
        model, dim, seed=0, space=pixel_features(), samples=20_000,
        batch_size=5000, value_range="any",
    )  # fmt: skip
    expected = (4 + 0.25 * (dim - 1)) / dim * twins.mean_squared_speed(dim)
    assert abs(found.mean - expected) < 4 * found.spread
    assert found.spread < 0.03 * expected


def test_it_is_the_square_of_a_speed():
    kwargs = {"seed": 0, "space": pixel_features(), "samples": 50, "value_range": "any"}
    model = linear(3)
    once = path_length(model, 3, **kwargs)
    with torch.no_grad():
        model.weight *= 3
    assert path_length(model, 3, **kwargs).mean == pytest.approx(9 * once.mean)
    # A linear generator has one speed at every step, up to how the path itself bends.
    longer = path_length(model, 3, step=1e-3, **kwargs)
    assert longer.mean == pytest.approx(9 * once.mean, rel=1e-2)


def test_spread_is_a_standard_error_and_float32_is_accurate_enough():
    settings = {"seed": 0, "space": pixel_features(), "value_range": "any"}
    model = linear(4)
    few, many = (path_length(model, 4, samples=n, **settings) for n in (100, 1600))
    assert 2.5 < few.spread / many.spread < 6.4  # 4 in expectation, within a factor of 1.6
    single = path_length(linear(4, dtype=torch.float32), 4, samples=100, **settings)
    assert single.mean == pytest.approx(few.mean, rel=1e-2)


def test_the_space_decides():
    first = FeatureSpace("first pixel", lambda x: x[:, :, 0, 0])
    settings = {"seed": 0, "samples": 30, "value_range": "any"}
    model = linear(3)
    found = path_length(model, 3, space=first, **settings)
    assert found.mean < path_length(model, 3, space=pixel_features(), **settings).mean
    assert str(found).startswith("PPL[first pixel, 30] = ")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples"),
        ({"latent_dim": 1}, "latent_dim of at least 2"),
        ({"step": 0.0}, "step"),
        ({"step": float("nan")}, "step"),
    ],
    ids=str,
)
def test_wrong_settings(settings, message):
    settings = {"latent_dim": 3, "seed": 0, "space": pixel_features()} | settings
    with pytest.raises(ConfigError, match=f"path_length needs .*{message}"):
        path_length(linear(), **settings)


@pytest.mark.bad_input
def test_features_that_are_none():
    for function, error in (
        (lambda x: x.mean(), ShapeError),
        (lambda x: x[:1], ShapeError),
        (lambda x: x.tolist(), ShapeError),
        (lambda x: x / 0, NonFiniteError),
    ):
        with pytest.raises(error, match="FeatureSpace 'mine' needs"):
            path_length(
                linear(), 3, seed=0, space=FeatureSpace("mine", function), value_range="any"
            )
