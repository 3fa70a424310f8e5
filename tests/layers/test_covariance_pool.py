"""Covariance pooling: against a float64 twin, its scale, few places, and what bad input gets."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from orthotrain.layers import GlobalCovariancePool
from reference.matrices import generator
from reference.whitening import covariance, covariance_pool

DEFAULT_RIDGE = 1e-5


def maps(*shape, seed=0, dtype=torch.float64):
    """Correlated channels with means of their own."""
    random = generator(seed)
    n, channels, *space = shape
    x = torch.randn(n, channels, *space, generator=random, dtype=torch.float64)
    mixing = torch.randn(channels, channels, generator=random, dtype=torch.float64)
    return (torch.einsum("cd,nd...->nc...", mixing, x) + 3.0).to(dtype)


def square(triangles, d):
    """The symmetric matrices of upper triangles."""
    full = triangles.new_zeros(len(triangles), d, d)
    rows, columns = torch.triu_indices(d, d)
    full[:, rows, columns] = triangles
    full[:, columns, rows] = triangles
    return full


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 5, 3), (2, 6, 2, 2), (2, 1, 3, 3)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"relative_ridge": 0.0},
        {"ridge": 0.2},
        {"relative_ridge": 0.1},
        {"shrinkage": 0.3},
        {"shrinkage": 1.0, "ridge": 0.1},
        {"ridge": 0.2, "relative_ridge": 0.1, "shrinkage": 0.3},
    ],
    ids=str,
)
def test_agrees_with_the_twin(shape, settings):
    x = maps(*shape)
    expected = covariance_pool(x, **({"relative_ridge": DEFAULT_RIDGE} | settings))
    torch.testing.assert_close(
        GlobalCovariancePool(shape[1], **settings)(x), expected, rtol=0, atol=1e-10
    )


def test_order_is_the_upper_triangle_row_by_row():
    # Uncorrelated channels of standard deviations 1, 2, 3: two places each, one after the other.
    x = torch.zeros(1, 3, 2, 3, dtype=torch.float64)
    for i in range(3):
        x[0, i, 0, i], x[0, i, 1, i] = (i + 1) * 3**0.5, -(i + 1) * 3**0.5
    y = GlobalCovariancePool(3, relative_ridge=0.0)(x)
    expected = torch.tensor([[1, 0, 0, 2, 0, 3]], dtype=torch.float64)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shrinkage", [0.0, 0.4])
def test_covariance_is_what_enters_the_root(shrinkage):
    x = maps(3, 4, 5, 3).requires_grad_()
    pool = GlobalCovariancePool(4, shrinkage=shrinkage, ridge=0.5)
    p = pool.covariance(x)
    for image, mine in zip(x, p, strict=True):
        exact = covariance(image.detach().flatten(1).mT)[1]
        unit = torch.eye(4, dtype=torch.float64) * exact.trace() / 4
        expected = (1 - shrinkage) * exact + shrinkage * unit
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(mine.trace(), exact.trace())
    assert gradcheck(pool.covariance, (x,), fast_mode=True)


# --- the reduction --------------------------------------------------------------------------------


def test_reduction_comes_first():
    pool = GlobalCovariancePool(6, reduced_channels=3).double()
    assert [type(m) for m in pool.reduce] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert (pool.reduce[0].weight.shape, pool.reduce[0].bias) == ((3, 6, 1, 1), None)
    assert pool.out_features == 6
    x = maps(4, 6, 3, 3)
    features = copy.deepcopy(pool.reduce)(x)
    expected = covariance_pool(features, relative_ridge=DEFAULT_RIDGE)
    torch.testing.assert_close(pool(x), expected, rtol=0, atol=1e-10)
    assert isinstance(GlobalCovariancePool(6).reduce, nn.Identity)
    assert list(GlobalCovariancePool(6).state_dict()) == []
    assert GlobalCovariancePool(6).out_features == 21


def test_reduction_of_the_same_width_is_still_one():
    assert isinstance(GlobalCovariancePool(4, reduced_channels=4).reduce, nn.Sequential)


# --- derivatives, and maps with fewer places than channels ----------------------------------------


@pytest.mark.parametrize("settings", [{}, {"shrinkage": 0.2}, {"relative_ridge": 0.1}], ids=str)
def test_derivative(settings):
    pool = GlobalCovariancePool(3, **settings)
    x = maps(2, 3, 3, 2).requires_grad_()
    assert gradcheck(pool, (x,))
    assert gradgradcheck(pool, (x,), fast_mode=True)


def test_derivative_with_fewer_places_than_channels():
    """Rank three of six. The default ridge is small: finite differences see a smooth function.

    Null directions of the covariance are null directions of the features, so a change of the
    features leaves the rank; the large derivative of the root there multiplies zero.
    """
    pool = GlobalCovariancePool(6)
    x = maps(1, 6, 2, 2).requires_grad_()
    assert gradcheck(pool, (x,), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("places", [(2, 1), (2, 2), (7, 7)], ids=str)
def test_gradients_of_rank_deficient_maps_are_finite_and_of_the_size_of_others(dtype, places):
    pool = GlobalCovariancePool(64)
    x = torch.randn(2, 64, *places, generator=generator(0), dtype=torch.float64)
    x = x.to(dtype).requires_grad_()
    (pool(x) * torch.randn(2, 2080, generator=generator(1))).sum().backward()
    assert torch.isfinite(x.grad).all()
    # A bound that a gradient of order 1 / sqrt(ridge) = 300 would break.
    assert x.grad.norm() < 3 * 2080**0.5


def test_the_default_ridge_moves_a_full_rank_root_little():
    x = maps(2, 8, 7, 7)
    exact = GlobalCovariancePool(8, relative_ridge=0.0)(x)
    assert (GlobalCovariancePool(8)(x) - exact).norm() < 1e-3 * exact.norm()


def test_constant_maps_give_zeros_and_a_zero_gradient():
    x = maps(3, 4, 3, 3)
    x[1] = 7.0
    for dtype in (torch.float32, torch.float64):
        mine = x.to(dtype).requires_grad_()
        for pool in (GlobalCovariancePool(4), GlobalCovariancePool(4, shrinkage=0.5)):
            y = pool(mine)
            assert not y[1].any()
            assert y[0].any()
            (gradient,) = torch.autograd.grad(y.sum(), mine)
            assert torch.isfinite(gradient).all()
            assert not gradient[1].any()
            assert gradient[0].any()


def test_one_dead_channel_leaves_a_zero_row():
    x = maps(2, 4, 5, 5)
    x[:, 2] = 0.0
    x.requires_grad_()
    s = square(GlobalCovariancePool(4, relative_ridge=0.0, ridge=1e-12)(x), 4)
    assert s[:, 2].abs().max() < 2e-6
    s.sum().backward()
    assert torch.isfinite(x.grad).all()


# --- dtype ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_the_dtype_that_goes_in_comes_out_of_the_right_scale(dtype):
    # Means of a hundred: squares pass the largest float16, and half precision sees no covariance.
    x = (maps(2, 4, 5, 5) + 100).to(dtype).requires_grad_()
    y = GlobalCovariancePool(4)(x)
    assert y.dtype == dtype
    expected = covariance_pool(x, relative_ridge=DEFAULT_RIDGE)
    budget = 1e-10 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=budget, atol=budget)
    y.sum().backward()
    assert x.grad.dtype == dtype
    assert GlobalCovariancePool(4).covariance(x).dtype == torch.float64


@pytest.mark.parametrize("reduced", [None, 3])
def test_autocast_touches_the_reduction_only(reduced):
    pool = GlobalCovariancePool(4, reduced_channels=reduced).eval()
    x = maps(2, 4, 5, 5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = pool(x)
        features = pool.reduce(x)
    assert y.dtype == torch.float32
    budget = 1e-5 if reduced is None else 1e-4
    expected = covariance_pool(features, relative_ridge=DEFAULT_RIDGE)
    torch.testing.assert_close(y.double(), expected, rtol=budget, atol=budget)


# --- what bad input gets --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_non_finite_features_name_the_layer(bad):
    x = maps(2, 4, 3, 3)
    x[1, 2, 0, 0] = bad
    with pytest.raises(
        NonFiniteError, match=r"GlobalCovariancePool\(4\) cannot take .* needs .* got .*"
    ):
        GlobalCovariancePool(4)(x)


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(4, 3, 3), (2, 4, 9), (2, 5, 3, 3), (2, 4, 3, 3, 3)], ids=str)
def test_wrong_shape(shape):
    for pool in (GlobalCovariancePool(4), GlobalCovariancePool(4, reduced_channels=2)):
        for call in (pool, pool.covariance):
            with pytest.raises(ShapeError, match=r"GlobalCovariancePool\(4\) needs x of shape"):
                call(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 4, 0, 3)], ids=str)
def test_a_single_place_has_no_covariance(shape):
    with pytest.raises(ShapeError, match="at least two places") as caught:
        GlobalCovariancePool(4)(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_wrong_dtype(dtype):
    with pytest.raises(ConfigError, match=str(dtype)):
        GlobalCovariancePool(4)(torch.zeros(2, 4, 3, 3, dtype=dtype))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("channels", "settings", "message"),
    [
        (0, {}, "in_channels=0"),
        (4, {"reduced_channels": 0}, "reduced_channels=0"),
        (4, {"ridge": -1.0}, "ridge"),
        (4, {"relative_ridge": math.nan}, "relative_ridge"),
        (4, {"relative_ridge": math.inf}, "relative_ridge"),
        (4, {"shrinkage": 1.1}, "shrinkage"),
        (4, {"shrinkage": -0.1}, "shrinkage"),
        (4, {"shrinkage": "a"}, "shrinkage .*got 'a'"),
        (4, {"method": "bogus"}, "method to be one of auto, eigh, .*got 'bogus'"),
        (4, {"gradient": "bogus"}, "gradient to be one of exact, lyapunov, .*got 'bogus'"),
        (4, {"gradient": "newton_schulz"}, "method='newton_schulz' for gradient"),
        (4, {"iterations": 3}, "iterations=3 with method='auto'"),
        (4, {"iterations": 1.5, "method": "newton_schulz"}, "iterations to be a whole number"),
    ],
    ids=str,
)
def test_wrong_settings(channels, settings, message):
    with pytest.raises(ConfigError, match=rf"GlobalCovariancePool(\(4\))? needs .*{message}"):
        GlobalCovariancePool(channels, **settings)


def test_settings_of_the_root_reach_it():
    x = maps(2, 4, 5, 5)
    exact = GlobalCovariancePool(4, ridge=1.0)(x)
    iterated = GlobalCovariancePool(4, ridge=1.0, method="newton_schulz", iterations=30)(x)
    torch.testing.assert_close(iterated, exact, rtol=0, atol=1e-8)
