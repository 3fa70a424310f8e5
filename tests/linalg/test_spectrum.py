"""Condition number and effective rank."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from orthotrain.errors import ConfigError
from orthotrain.linalg import condition_number, effective_rank
from reference import linalg as twins
from reference.matrices import from_spectrum, log_spectrum

modest = hypothesis.settings(deadline=None, max_examples=40)
EPS = torch.finfo(torch.float64).eps

shapes = st.tuples(st.integers(2, 9), st.integers(2, 9))


@modest
@hypothesis.given(shapes, st.integers(0, 6), st.integers(0, 99))
def test_condition_is_the_one_chosen(shape: tuple[int, int], power: int, seed: int):
    condition = 10.0**power
    a = from_spectrum(log_spectrum(min(shape), condition), *shape, seed=seed)
    # The smallest singular value is known to eps of the largest; measured below 5 of them.
    budget = 32 * EPS * condition
    assert abs(condition_number(a).item() / condition - 1) <= budget
    assert abs(condition_number(1e-9 * a.mT).item() / condition - 1) <= budget


@pytest.mark.parametrize(
    ("rtol", "expected"),
    [(None, 1e8), (0.0, 1e8), (1e-6, 1e4), (1e-4, 1e4), (1e-3, 10.0), (0.9, 1)],
)
def test_condition_on_the_range(rtol: float | None, expected: float):
    a = torch.diag(torch.tensor([1.0, 0.1, 1e-4, 1e-8], dtype=torch.float64))
    assert condition_number(a, rtol=rtol).item() == pytest.approx(expected, rel=1e-7)


def test_condition_of_singular_and_zero_matrices_is_infinite():
    a = torch.stack([torch.diag(torch.tensor([2.0, 0.0])), torch.zeros(2, 2), torch.eye(2)])
    assert condition_number(a).tolist() == [torch.inf, torch.inf, 1.0]
    assert condition_number(a, rtol=1e-3).tolist() == [1.0, torch.inf, 1.0]


def test_condition_of_half_precision_may_pass_its_range():
    a = torch.diag(torch.tensor([60000.0, 6e-5], dtype=torch.float16))
    value = condition_number(a)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(60000 / float(a[1, 1]), rel=1e-6)


@pytest.mark.parametrize("rtol", [-1e-3, 1.0])
def test_condition_refuses_an_rtol_outside_its_range(rtol: float):
    with pytest.raises(ConfigError, match="rtol"):
        condition_number(torch.eye(2), rtol=rtol)


def test_derivative_of_an_infinite_condition_is_not_nan():
    a = torch.stack([torch.diag(torch.tensor([2.0, 0.0])), torch.diag(torch.tensor([2.0, 1.0]))])
    a.requires_grad_()
    condition_number(a)[1].backward()
    expected = torch.zeros(2, 2, 2)
    expected[1] = torch.diag(torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(a.grad, expected)


@modest
@hypothesis.given(
    st.lists(st.just(0.0) | st.floats(1e-12, 10), min_size=1, max_size=12),
    st.integers(-900, 900),
)
def test_effective_rank_is_bounded_and_blind_to_order_and_scale(values: list[float], power: int):
    s = torch.tensor(values, dtype=torch.float64)
    hypothesis.assume(s.max() > 1e-3)
    rank = effective_rank(s).item()
    assert 1 - 32 * EPS <= rank <= len(values) * (1 + 32 * EPS)
    assert effective_rank(s.flip(0)).item() == pytest.approx(rank, rel=32 * EPS)
    assert effective_rank(s * 2.0**power).item() == pytest.approx(rank, rel=1e-12)
    assert twins.effective_rank(s) == pytest.approx(rank, rel=32 * EPS)


def test_effective_rank_of_flat_single_and_zero_spectra():
    s = torch.tensor([[3.0, 3.0, 3.0], [7.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(effective_rank(s), torch.tensor([3.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("value", [1.5e308, 5e-324])
def test_effective_rank_of_extreme_numbers(value: float):
    assert effective_rank(torch.full((3,), value, dtype=torch.float64)).item() == pytest.approx(3)


def test_effective_rank_of_many_equal_half_values():
    # A sum of 4096 in float16 with p in float16 would be far off.
    assert effective_rank(torch.full((4096,), 20.0, dtype=torch.float16)).item() == 4096.0


def test_derivative_of_effective_rank_at_zero_is_finite():
    s = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    effective_rank(s).backward()
    assert torch.isfinite(s.grad).all()
