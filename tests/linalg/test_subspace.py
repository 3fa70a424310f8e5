"""Stability and mixing of an orthogonal basis."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from orthotrain.linalg import (
    basis_stability,
    basis_stability_from_polar,
    mixing_similarity,
    polar_factor,
)
from reference.matrices import from_spectrum, generator, log_spectrum, orthonormal

modest = hypothesis.settings(deadline=None, max_examples=30)
EPS = torch.finfo(torch.float64).eps


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    m, n = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    seed = draw(st.integers(0, 99))
    s = log_spectrum(min(m, n), 10.0 ** draw(st.integers(0, 2)))
    return from_spectrum(s, m, n, seed=seed), from_spectrum(s.flip(0), m, n, seed=seed + 500)


# Condition 100 at most; measured below 2 condition * eps.
BUDGET = 8 * 100 * EPS


@modest
@hypothesis.given(pairs(), st.floats(0.01, 100), st.floats(0.01, 100))
def test_stability_is_symmetric_and_blind_to_scale(pair, x: float, y: float):
    before, after = pair
    value = basis_stability(before, after)
    assert abs(value) <= 1
    assert (basis_stability(after, before) - value).abs() <= BUDGET
    assert (basis_stability(x * before, y * after) - value).abs() <= BUDGET
    assert (basis_stability(before, -after) + value).abs() <= BUDGET
    assert (basis_stability(before.mT, after.mT) - value).abs() <= BUDGET


@modest
@hypothesis.given(pairs())
def test_stability_sees_the_basis_alone(pair):
    a, _ = pair
    assert (basis_stability(a, a) - 1).abs() <= BUDGET
    # Another spectrum on the same singular vectors is the same basis.
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    assert (basis_stability(a, (u * (s + 1)) @ vh) - 1).abs() <= BUDGET
    # A common turn of both changes nothing.
    turn = orthonormal(a.shape[0], a.shape[0], seed=9)
    other = pair[1]
    expected = basis_stability(a, other)
    assert (basis_stability(turn @ a, turn @ other) - expected).abs() <= BUDGET


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.5, math.pi])
def test_stability_of_a_turn_in_the_plane_is_its_cosine(angle: float):
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    a = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    assert basis_stability(a, turn @ a).item() == pytest.approx(math.cos(angle), abs=32 * EPS)


def test_stability_does_not_pass_one_by_rounding():
    a = torch.randn(200, 6, 4, generator=generator(0), dtype=torch.float64)
    q = polar_factor(a)
    # The inputs are such that rounding does pass 1 before it is held back.
    assert ((q * q).sum(dim=(-2, -1)) / 4).max() > 1
    assert basis_stability_from_polar(q, q).max() <= 1
    assert basis_stability_from_polar(q, -q).min() >= -1


def test_null_directions_count_as_no_similarity():
    full = torch.eye(4, 2, dtype=torch.float64)
    half = torch.tensor([[1.0, 0.0]] + [[0.0, 0.0]] * 3, dtype=torch.float64)
    assert basis_stability(full, half).item() == 0.5
    assert basis_stability(torch.zeros(4, 2), torch.zeros(4, 2)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_measured_in_more(dtype: torch.dtype):
    before = from_spectrum(log_spectrum(6, 4.0), 30, 6).to(dtype)
    after = (before.float() + 0.02 * torch.randn(30, 6, generator=generator(3))).to(dtype)
    exact = basis_stability(before.double(), after.double())
    value = basis_stability(before, after)
    assert value.dtype == torch.float32
    # Bases rounded to bfloat16 would be off by 1e-4 or more.
    assert (value.double() - exact).abs() <= 1e-6


def test_stability_from_kept_bases_is_the_same():
    before = from_spectrum(log_spectrum(5, 9.0), 3 * 5, 5, seed=1)
    after = from_spectrum(log_spectrum(5, 9.0), 3 * 5, 5, seed=2)
    q_before, q_after = polar_factor(before), polar_factor(after)
    direct = basis_stability(before, after)
    assert torch.equal(basis_stability_from_polar(q_before, q_after), direct)
    # The kept basis may live in float32.
    rounded = basis_stability_from_polar(q_before.float(), q_after)
    assert (rounded - direct).abs() <= 1e-7
    assert rounded.dtype == torch.float64


@modest
@hypothesis.given(pairs(), st.floats(0.01, 100))
def test_mixing_is_symmetric_bounded_and_keeps_common_scale(pair, x: float):
    before, after = pair
    value = mixing_similarity(before, after)
    assert 0 <= value <= 1
    assert (mixing_similarity(after, before) - value).abs() <= BUDGET
    assert (mixing_similarity(x * before, x * after) - value).abs() <= BUDGET
    assert mixing_similarity(before, before) == 1


@modest
@hypothesis.given(pairs())
def test_mixing_is_blind_to_a_turn_of_the_basis(pair):
    a, _ = pair
    tall = a if a.shape[0] >= a.shape[1] else a.mT
    turn = orthonormal(tall.shape[0], tall.shape[0], seed=9)
    assert (mixing_similarity(tall, turn @ tall) - 1).abs() <= BUDGET
    # Also for a turn that flips signs: the diagonal of R is made positive.
    assert (mixing_similarity(tall, -tall) - 1).abs() <= BUDGET


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, 1e30])
def test_mixing_of_a_multiple_follows_the_formula(factor: float):
    a = from_spectrum([3.0, 1.0], 4, 2)
    expected = 1 - abs(factor - 1) / (factor + 1)
    assert mixing_similarity(a, factor * a).item() == pytest.approx(expected, abs=32 * EPS)


def test_mixing_keeps_rows_whose_diagonal_is_zero():
    a = torch.tensor([[0.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    assert mixing_similarity(a, 2 * a).item() == pytest.approx(2 / 3)


def test_mixing_of_two_zero_matrices_is_one():
    assert mixing_similarity(torch.zeros(3, 2), torch.zeros(3, 2)).item() == 1.0


@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_mixing_of_extreme_numbers_is_finite(value: float):
    a = from_spectrum([3.0, 1.0], 4, 2)
    assert mixing_similarity(value * a, 2 * value * a).item() == pytest.approx(2 / 3)
