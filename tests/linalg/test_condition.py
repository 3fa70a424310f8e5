"""Condition number, and condition in four senses."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from orthotrain.errors import (
    ConfigError,
    ConvergenceError,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
)
from orthotrain.linalg import condition_number, condition_readings, spd_sqrt
from reference import conditioning
from reference.matrices import from_spectrum, log_spectrum
from reference.spd_root import spd

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


# --- condition in four senses -------------------------------------------------------------------


@modest
@hypothesis.given(
    st.lists(st.floats(1e-4, 10), min_size=1, max_size=8),
    st.sampled_from([0.0, 1e-3, 1.0]),
    st.sampled_from([0.0, 1e-2]),
    st.sampled_from([1e-9, 1e-2, 0.5]),
    st.integers(-300, 300),
)
def test_readings_are_those_of_the_chosen_spectrum(
    values: list[float], ridge: float, relative: float, rtol: float, power: int
):
    # Away from the threshold, where rounding would decide the rank.
    hypothesis.assume(all(abs(v / max(values) / rtol - 1) > 1e-6 for v in values))
    scale = 2.0**power
    r = condition_readings(
        spd(values) * scale, symmetric=True, ridge=ridge * scale, relative_ridge=relative, rtol=rtol
    )
    expected = conditioning.readings(
        torch.tensor(values, dtype=torch.float64), rtol=rtol, ridge=ridge, relative=relative
    )
    # An eigenvalue is known to eps of the largest; the smallest may be 1e5 times smaller.
    near = {"rel": 32 * EPS * 1e5}
    assert r.rank.item() == expected.rank
    assert r.on_range.item() == pytest.approx(expected.on_range, **near)
    assert r.with_ridge.item() == pytest.approx(expected.with_ridge, **near)
    assert r.naive_float64.item() == pytest.approx(expected.naive, **near)
    assert r.largest.item() == pytest.approx(expected.largest * scale, **near)
    assert r.norm.item() == pytest.approx(expected.norm * scale, **near)
    assert r.ridge.item() == pytest.approx(expected.ridge * scale, **near)
    assert r.rtol == rtol


@modest
@hypothesis.given(shapes, st.integers(0, 5), st.integers(0, 99))
def test_readings_of_any_matrix_are_of_its_singular_values(
    shape: tuple[int, int], power: int, seed: int
):
    s = log_spectrum(min(shape), 10.0**power)
    r = condition_readings(from_spectrum(s, *shape, seed=seed), rtol=2e-3)
    expected = conditioning.readings(s, rtol=2e-3)
    near = {"rel": 32 * EPS * 10.0**power}
    assert r.rank.item() == expected.rank
    assert r.on_range.item() == pytest.approx(expected.on_range, **near)
    assert r.naive_float64.item() == pytest.approx(expected.naive, **near)
    # Rounded to float32 first: a share of eps of the largest, measured below 2 of them.
    assert r.naive_float32.item() == pytest.approx(10.0**power, rel=16 * 1.2e-7 * 10.0**power)
    assert r.largest.item() == pytest.approx(1.0, **near)
    assert r.norm.item() == pytest.approx(expected.norm, **near)
    assert r.with_ridge is None
    assert r.ridge is None


def test_one_covariance_reads_differently_in_each_sense():
    # 27 inputs through 64 channels, the case of a 3x3 stem: 37 eigenvalues are rounding.
    inputs = from_spectrum(log_spectrum(27, 300.0), 27, 5000, seed=3)
    features = from_spectrum(log_spectrum(27, 10.0), 64, 27, seed=5) @ inputs
    features = features - features.mean(dim=1, keepdim=True)
    covariance = features @ features.mT
    exact = torch.linalg.svdvals(features)[:27].square()
    r = condition_readings(
        (covariance + covariance.mT) / 2, symmetric=True, ridge=1e-2 * exact[0].item()
    )
    assert r.rank.item() == 27
    assert r.on_range.item() == pytest.approx((exact[0] / exact[-1]).item(), rel=1e-6)
    assert r.with_ridge.item() == pytest.approx(101.0, rel=1e-9)
    # These two have no right value; what is shown is that they are far from the others and apart.
    assert r.naive_float32.item() > 100 * r.on_range.item()
    assert r.naive_float64.item() > 1000 * r.naive_float32.item()


@pytest.mark.parametrize("symmetric", [True, False])
def test_readings_of_a_zero_matrix(symmetric: bool):
    r = condition_readings(torch.zeros(2, 2), symmetric=symmetric)
    assert (r.rank.item(), r.largest.item(), r.norm.item()) == (0, 0.0, 0.0)
    assert r.on_range.item() == r.naive_float32.item() == r.naive_float64.item() == torch.inf
    if symmetric:
        assert r.with_ridge.item() == torch.inf
        assert condition_readings(torch.zeros(2, 2), symmetric=True, ridge=0.1).with_ridge == 1.0


def test_the_ridge_is_added_to_what_a_root_would_take_it_for():
    # Rounding leaves a null eigenvalue slightly below zero; a root takes it for zero.
    a = spd([2.0, 1.0, 0.0, 0.0], seed=7) - 1e-17 * torch.eye(4)
    r = condition_readings(a, symmetric=True, ridge=1e-12, relative_ridge=1e-3)
    root = spd_sqrt(a, ridge=1e-12, relative_ridge=1e-3)
    assert r.with_ridge.item() == pytest.approx(condition_number(root).item() ** 2, rel=1e-9)


def test_an_eigenvalue_that_rounding_left_below_zero_counts_as_zero():
    a = torch.diag(torch.tensor([1.0, -(2.0**-20)]))
    r = condition_readings(a, symmetric=True, ridge=2.0**-19, rtol=1e-7)
    assert (r.rank.item(), r.on_range.item()) == (1, 1.0)
    assert r.with_ridge.item() == 2.0**19 + 1
    # A plain condition number does not know better and divides by its size.
    assert r.naive_float64.item() == r.naive_float32.item() == 2.0**20


def test_readings_of_batch_entries_are_independent():
    a = torch.stack([1e20 * spd([3.0, 1.0, 0.5]), 1e-20 * spd([1.0, 1e-3, 0.0]), spd([1.0, 1, 1])])
    together = condition_readings(a, symmetric=True, ridge=1e-3, relative_ridge=1e-4)
    for i, matrix in enumerate(a):
        alone = condition_readings(matrix, symmetric=True, ridge=1e-3, relative_ridge=1e-4)
        for name in ("rank", "on_range", "with_ridge", "naive_float32", "largest", "norm", "ridge"):
            assert getattr(together, name)[i] == getattr(alone, name), name
    empty = condition_readings(a[:0], symmetric=True)
    assert empty.rank.shape == empty.on_range.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_readings_count_what_rounding_in_the_given_precision_leaves(dtype: torch.dtype):
    a = spd([1.0] * 5 + [0.0] * 11).to(dtype)
    r = condition_readings(a, symmetric=True)
    assert r.rank.item() == 5
    assert r.rtol == 16 * torch.finfo(dtype).eps
    assert r.on_range.item() == pytest.approx(1.0, abs=32 * torch.finfo(dtype).eps)
    for value in (r.on_range, r.with_ridge, r.naive_float32, r.naive_float64, r.largest, r.norm):
        assert value.dtype == torch.float64
    wide = torch.zeros(1, 1024).to(dtype)
    assert condition_readings(wide).rtol == min(0.5, 1024 * torch.finfo(dtype).eps)


def test_readings_are_a_measurement():
    a = spd([2.0, 1.0]).requires_grad_()
    before = a.detach().clone()
    r = condition_readings(a, symmetric=True, ridge=0.1)
    assert not r.with_ridge.requires_grad
    assert torch.equal(a.detach(), before)
    assert a.grad is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("a", "settings", "error", "words"),
    [
        (torch.eye(2), {"ridge": 0.1}, ConfigError, "symmetric=True, got ridge"),
        (torch.eye(2), {"relative_ridge": 0.1}, ConfigError, "symmetric=True, got relative"),
        (torch.eye(2), {"symmetric": True, "ridge": -1.0}, ConfigError, "finite ridge"),
        (torch.eye(2), {"symmetric": True, "ridge": torch.inf}, ConfigError, "finite ridge"),
        (torch.eye(2), {"rtol": 1.0}, ConfigError, "rtol"),
        (torch.ones(2, 3), {"symmetric": True}, ShapeError, "n, n"),
        (torch.ones(3), {}, ShapeError, "m, n"),
        (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), {"symmetric": True}, ConfigError, "asymmetry"),
        (torch.diag(torch.tensor([1.0, -1e-3])), {"symmetric": True}, NotPositiveDefiniteError,
         "1 of shape"),
        (torch.full((2, 2), torch.nan), {"symmetric": True}, NonFiniteError, "NaN"),
        (torch.full((2, 2), torch.inf), {}, NonFiniteError, "infinite"),
        (torch.eye(2, dtype=torch.int64), {}, ConfigError, "floating-point"),
    ],
)  # fmt: skip
def test_readings_refuse(a: torch.Tensor, settings: dict, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        condition_readings(a, **settings)


def test_a_driver_that_does_not_converge_is_named(monkeypatch: pytest.MonkeyPatch):
    def fail(a: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("no")

    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    with pytest.raises(ConvergenceError, match="did not converge"):
        condition_readings(torch.eye(2))


# --- effective rank -----------------------------------------------------------------------------
