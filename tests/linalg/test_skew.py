"""Skew parts and the orthogonal maps they give, held against dense operators."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from orthotrain.linalg import (
    cayley_transform,
    conv_exponential,
    conv_skew_part,
    conv_spectral_bound,
    exponential_remainder,
    skew_exponential,
    skew_part,
)
from reference import convolution as twins
from reference.matrices import generator

EPS = torch.finfo(torch.float64).eps
modest = hypothesis.settings(deadline=None, max_examples=25)

MAPS = pytest.mark.parametrize("turn", [cayley_transform, skew_exponential])
KERNELS = ((1, 1, 1), (4, 1, 1), (3, 3, 3), (1, 3, 3), (2, 5, 3), (2, 1, 5))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def skew_kernel(channels: int, kh: int, kw: int, *, seed: int = 0) -> torch.Tensor:
    return conv_skew_part(random(channels, channels, kh, kw, seed=seed))


# --- matrices ---------------------------------------------------------------------------------


def test_skew_part_is_skew_and_the_nearest_one():
    a = random(2, 3, 5, 5)
    skew = skew_part(a)
    assert torch.equal(skew.mT, -skew)
    assert torch.equal(skew_part(skew), skew)
    # What is left is symmetric, so orthogonal to every skew matrix.
    torch.testing.assert_close((a - skew).mT, a - skew, rtol=0, atol=2 * EPS)


@modest
@hypothesis.given(st.integers(1, 8), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 30.0]))
def test_both_maps_give_rotations(n: int, seed: int, size: float):
    a = skew_part(size * random(n, n, seed=seed))
    for turn in (cayley_transform, skew_exponential):
        q = turn(a)
        # Squaring doubles the error log2(|a|) times.
        budget = 32 * EPS * max(1.0, float(a.abs().sum(-1).max()))
        assert (q.mT @ q - torch.eye(n, dtype=torch.float64)).abs().max() <= budget
        assert float(torch.linalg.det(q)) == pytest.approx(1.0, abs=1e-9)
        torch.testing.assert_close(turn(-a), q.mT, rtol=0, atol=budget)


def rotation(angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.045, 0.3, 2.0])
def test_exponential_turns_by_the_angle_and_cayley_by_its_tangent(angle):
    a = torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=torch.float64)
    for turn, turned in ((skew_exponential, angle), (cayley_transform, 2 * math.atan(angle / 2))):
        torch.testing.assert_close(turn(a), rotation(turned), rtol=0, atol=4 * EPS)
        torch.testing.assert_close(turn(a[None]), rotation(turned)[None], rtol=0, atol=4 * EPS)
        torch.testing.assert_close(
            turn(a[None, None])[0, 0], rotation(turned), rtol=0, atol=4 * EPS
        )


@MAPS
def test_batch_entries_are_independent(turn):
    a = skew_part(random(2, 3, 4, 4))
    whole = turn(a)
    scaled = a.clone()
    scaled[0, 0] *= 1e3
    assert torch.equal(turn(scaled)[1], whole[1])
    torch.testing.assert_close(torch.stack([turn(x) for x in a[1]]), whole[1], rtol=0, atol=4 * EPS)
    assert turn(a[:0]).shape == (0, 3, 4, 4)


@MAPS
def test_half_precision_is_rounded_once(turn):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a = skew_part(random(5, 5, dtype=dtype))
        q = turn(a)
        assert q.dtype == dtype
        assert torch.equal(q, turn(a.double()).to(dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(turn(a), q)


@MAPS
def test_maps_have_derivatives(turn):
    def through(a):
        return turn(skew_part(a))

    a = random(2, 4, 4).requires_grad_()
    assert gradcheck(through, a)
    assert gradgradcheck(through, a)
    assert gradcheck(through, torch.zeros_like(a, requires_grad=True))


@pytest.mark.bad_input
def test_matrices_that_cannot_be_turned():
    for function in (skew_part, cayley_transform, skew_exponential):
        with pytest.raises(ShapeError, match=r"square.*pad"):
            function(torch.zeros(2, 3))
        with pytest.raises(ShapeError):
            function(torch.zeros(3))
        with pytest.raises(ConfigError, match="floating"):
            function(torch.zeros(3, 3, dtype=torch.int64))
    for turn in (cayley_transform, skew_exponential):
        with pytest.raises(ConfigError, match="skew_part first"):
            turn(torch.eye(3))
        with pytest.raises(NonFiniteError):
            turn(torch.tensor([[0.0, math.nan], [-math.nan, 0.0]]))
        # One entry that is not skew among many large ones that are.
        batch = skew_part(1e6 * random(3, 4, 4))
        batch[1] *= 1e-9
        batch[1, 0, 0] = 1e-3
        with pytest.raises(ConfigError):
            turn(batch)


# --- the skew part of a convolution -----------------------------------------------------------


@pytest.mark.parametrize("shape", KERNELS, ids=str)
@pytest.mark.parametrize("size", [(4, 5), (1, 1), (2, 6)], ids=str)
def test_the_operator_of_the_skew_part_is_skew_with_zero_padding(shape, size):
    channels, kh, kw = shape
    kernel = random(channels, channels, kh, kw)
    dense = twins.dense_operator(kernel, *size)
    skew = twins.dense_operator(conv_skew_part(kernel), *size)
    assert torch.equal(skew, -skew.T)
    torch.testing.assert_close(skew, skew_part(dense), rtol=0, atol=EPS)
    assert torch.equal(conv_skew_part(conv_skew_part(kernel)), conv_skew_part(kernel))


# --- its spectral bound -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (4, 2, 1, 1), (3, 3, 5, 1), (1, 4, 2, 3)], ids=str)
def test_bound_is_the_least_of_the_four_norms(shape):
    kernel = random(*shape)
    found = conv_spectral_bound(kernel, rounds=3000)
    expected = math.sqrt(shape[2] * shape[3]) * min(twins.four_norms(kernel))
    assert float(found.bound) == pytest.approx(expected, rel=1e-12)
    assert [len(u) for u in found.left] == [
        shape[0], shape[1], shape[0] * shape[2], shape[0] * shape[3]
    ]  # fmt: skip
    assert all(float(u.norm()) == pytest.approx(1.0) for u in found.left)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_each_of_the_four_can_be_the_least(axis):
    # The matrix whose rows or columns hold the two numbers of this axis has norm sqrt 2, as
    # against 1 for the rest: all others must be found to be larger, or be equal to it.
    kernel = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    index = [0, 0, 0, 0]
    for i in range(2):
        index[axis] = i
        kernel[tuple(index)] = 1.0
    norms = twins.four_norms(kernel)
    found = conv_spectral_bound(kernel, rounds=50).bound
    assert float(found) == pytest.approx(3 * min(norms))


@pytest.mark.parametrize("shape", KERNELS, ids=str)
def test_bound_is_above_the_norm_of_the_operator(shape):
    for seed in range(3):
        kernel = skew_kernel(*shape, seed=seed)
        norm = torch.linalg.matrix_norm(twins.dense_operator(kernel, 6, 6), 2)
        bound = conv_spectral_bound(kernel, rounds=500).bound
        assert norm <= bound * (1 + 1e-9)


def test_bound_is_reached_where_all_taps_agree():
    # A derivative along one axis, summed along the other: 6 in the limit of a large image.
    kernel = torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]], dtype=torch.float64)[None, None]
    assert torch.equal(conv_skew_part(kernel), kernel)
    norm = float(torch.linalg.matrix_norm(twins.dense_operator(kernel, 20, 20), 2))
    least = min(twins.four_norms(kernel))
    # The factor sqrt(kh kw) is needed: without it this kernel would be 2.4 times as large as said.
    assert norm > 2.3 * least
    assert norm <= float(conv_spectral_bound(kernel).bound)


@pytest.mark.parametrize("shape", KERNELS, ids=str)
def test_two_norms_are_enough_for_a_skew_kernel(shape):
    kernel = skew_kernel(*shape, seed=5)
    one, two, three, four = twins.four_norms(kernel)
    assert one == pytest.approx(two)
    assert three == pytest.approx(four)
    short = conv_spectral_bound(kernel, rounds=2000, skew=True)
    assert len(short.left) == 2
    full = conv_spectral_bound(kernel, rounds=2000)
    assert float(short.bound) == pytest.approx(float(full.bound), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("channels", "size"), [(7, 3), (64, 1), (64, 3), (32, 5)])
def test_fifty_rounds_are_short_of_the_norm_by_a_few_percent(channels, size):
    for seed in range(4):
        kernel = skew_kernel(channels, size, size, seed=seed).float()
        flat = torch.linalg.matrix_norm(kernel.double().flatten(1), 2)
        rows = kernel.double().permute(0, 2, 1, 3).reshape(channels * size, -1)
        exact = size * min(flat, torch.linalg.matrix_norm(rows, 2))
        short = 1 - float(conv_spectral_bound(kernel, skew=True).bound) / float(exact)
        assert -1e-6 <= short <= 0.05


def test_power_iteration_goes_on_where_it_stopped():
    kernel = skew_kernel(6, 3, 3)
    half = conv_spectral_bound(kernel, rounds=5)
    whole = conv_spectral_bound(kernel, rounds=10)
    assert torch.equal(conv_spectral_bound(kernel, left=half.left, rounds=5).bound, whole.bound)
    assert half.bound < whole.bound
    assert torch.equal(conv_spectral_bound(kernel, left=half.left, rounds=0).bound, half.bound)


def test_bound_depends_on_its_arguments_alone():
    kernel = skew_kernel(4, 3, 3)
    state = torch.get_rng_state()
    first = conv_spectral_bound(kernel, rounds=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(conv_spectral_bound(kernel, rounds=3).bound, first.bound)


def test_bound_follows_the_scale_exactly():
    kernel = random(3, 3, 3, 3, dtype=torch.float32)
    expected = conv_spectral_bound(kernel).bound
    for exponent in (-120, -60, 60, 110):
        assert torch.equal(conv_spectral_bound(kernel * 2.0**exponent).bound,
                           expected * 2.0**exponent)  # fmt: skip


def test_bound_of_zero_and_of_nan_keeps_the_vectors():
    left = conv_spectral_bound(skew_kernel(3, 3, 3)).left
    for value, expected in ((0.0, 0.0), (math.nan, math.nan)):
        found = conv_spectral_bound(torch.full((3, 3, 3, 3), value).double(), left=left)
        torch.testing.assert_close(found.bound, torch.tensor(expected).double(), equal_nan=True)
        for one, other in zip(found.left, left, strict=True):
            assert torch.equal(one, other)


def test_bound_is_computed_in_float32_at_least():
    kernel = random(3, 3, 3, 3)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        low = kernel.to(dtype)
        expected = conv_spectral_bound(low.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = conv_spectral_bound(low)
        assert found.bound.dtype == torch.float32
        assert torch.equal(found.bound, expected.bound)


def test_gradient_of_the_bound_is_that_of_the_norm():
    kernel = random(3, 2, 3, 3).requires_grad_()
    left = conv_spectral_bound(kernel, rounds=3000).left

    def bound(kernel):
        return conv_spectral_bound(kernel, left=left, rounds=40).bound

    assert gradcheck(bound, kernel, atol=1e-6)


# --- its exponential --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", KERNELS, ids=str)
@pytest.mark.parametrize("terms", [1, 2, 5])
def test_series_of_the_dense_operator(shape, terms):
    channels, kh, kw = shape
    kernel = 0.3 * random(channels, channels, kh, kw)
    x = random(2, channels, 4, 5, seed=1)
    dense = twins.dense_operator(kernel, 4, 5)
    total = power = torch.eye(len(dense), dtype=torch.float64)
    for i in range(1, terms + 1):
        power = power @ dense / i
        total = total + power
    expected = (x.flatten(1) @ total.T).view_as(x)
    torch.testing.assert_close(conv_exponential(x, kernel, terms=terms), expected)


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_missing_and_dropped_channels_are_zeros_and_a_crop(terms):
    kernel = 0.3 * random(4, 4, 3, 3)
    x = random(2, 4, 5, 5, seed=1)
    for inputs in (1, 3):
        padded = x.clone()
        padded[:, inputs:] = 0
        whole = conv_exponential(padded, kernel, terms=terms)
        torch.testing.assert_close(conv_exponential(x[:, :inputs], kernel, terms=terms), whole)
        for outputs in (1, 2, 4):
            cropped = conv_exponential(
                x[:, :inputs], kernel, terms=terms, out_channels=outputs
            )  # fmt: skip
            torch.testing.assert_close(cropped, whole[:, :outputs])


@pytest.mark.parametrize("norm", [0.1, 0.7, 1.0])
@pytest.mark.parametrize("terms", [1, 4, 5])
def test_remainder_bounds_the_error_and_is_nearly_reached(norm, terms):
    # A rotation of the plane by the angle, as a 1x1 convolution.
    kernel = torch.tensor([[0.0, -norm], [norm, 0.0]], dtype=torch.float64)[:, :, None, None]
    x = torch.eye(2, dtype=torch.float64)[:, :, None, None]
    turned = conv_exponential(x, kernel, terms=terms)[:, :, 0, 0].T
    error = torch.linalg.matrix_norm(turned - skew_exponential(kernel[:, :, 0, 0]), 2)
    bound = exponential_remainder(norm, terms)
    assert 0.8 * bound <= error <= bound
    assert (torch.linalg.svdvals(turned) - 1).abs().max() <= bound


def test_exponential_has_derivatives():
    x = random(2, 2, 3, 4).requires_grad_()
    kernel = (0.5 * random(3, 3, 3, 3, seed=1)).requires_grad_()

    def exponential(x, kernel):
        return conv_exponential(x, kernel, terms=3, out_channels=2)

    assert gradcheck(exponential, (x, kernel))
    assert gradgradcheck(exponential, (x, kernel))


def test_exponential_of_an_empty_batch():
    kernel = skew_kernel(3, 3, 3).requires_grad_()
    y = conv_exponential(torch.zeros(0, 2, 4, 5, dtype=torch.float64), kernel, terms=2)
    assert y.shape == (0, 3, 4, 5)
    y.sum().backward()
    assert torch.equal(kernel.grad, torch.zeros_like(kernel))


@pytest.mark.bad_input
def test_kernels_that_cannot_be_used():
    x, kernel = torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 3, 3)
    with pytest.raises(ShapeError, match=r"odd kernel.*3x5"):
        conv_skew_part(torch.zeros(2, 2, 2, 4))
    with pytest.raises(ShapeError, match="channels out as in"):
        conv_skew_part(torch.zeros(2, 3, 3, 3))
    with pytest.raises(ShapeError, match=r"\(out, in, kh, kw\)"):
        conv_spectral_bound(torch.zeros(2, 3, 3))
    with pytest.raises(ShapeError, match="without a zero"):
        conv_spectral_bound(torch.zeros(0, 3, 3, 3))
    with pytest.raises(ConfigError, match="floating"):
        conv_spectral_bound(torch.zeros(2, 2, 3, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="rounds"):
        conv_spectral_bound(kernel, rounds=-1)
    with pytest.raises(ShapeError, match="keep skew"):
        conv_spectral_bound(kernel, left=conv_spectral_bound(kernel, skew=True).left)
    with pytest.raises(ShapeError, match="in <= 2"):
        conv_exponential(torch.zeros(1, 3, 4, 4), kernel, terms=2)
    with pytest.raises(ShapeError):
        conv_exponential(x[0], kernel, terms=2)
    for settings in (
        {"terms": 0},
        {"terms": 2, "out_channels": 3},
        {"terms": 2, "out_channels": 0},
    ):
        with pytest.raises(ConfigError, match="terms"):
            conv_exponential(x, kernel, **settings)
