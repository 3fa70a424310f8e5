"""The decomposition in a metric: its twin, what it minimises, what it does not depend on."""

from __future__ import annotations

import pytest
import torch

from orthotrain.errors import (
    ConfigError,
    NonFiniteError,
    NotPositiveDefiniteError,
    RankError,
    ShapeError,
)
from orthotrain.linalg import metric_svd, thin_svd, truncated
from reference import metric_svd as twin
from reference.matrices import from_spectrum, generator

SHAPES = [(6, 4), (4, 6), (5, 5), (1, 3), (3, 1)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def covariance(size, *, seed=0, samples=None):
    x = random(samples or 3 * size, size, seed=seed) * torch.logspace(0, -2, size).double()
    return x.mT @ x / len(x)


def case(m, n, seed=0):
    return random(m, n, seed=seed), covariance(n, seed=seed + 1), covariance(m, seed=seed + 2)


def nearest(w, a, b, rank, *, ridge=1e-3):
    left, s, right = metric_svd(w, a=a, b=b, ridge=ridge)
    return left[:, :rank] * s[:rank] @ right[:rank]


# --- the definition -------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_it_is_its_twin(m, n, ridge):
    w, a, b = case(m, n)
    s = metric_svd(w, a=a, b=b, ridge=ridge).s
    torch.testing.assert_close(s, twin.singular_values(w, a, b, ridge), rtol=1e-10, atol=1e-13)
    for rank in range(1, min(m, n) + 1):
        expected = twin.nearest(w, a, b, ridge, rank)
        torch.testing.assert_close(
            nearest(w, a, b, rank, ridge=ridge), expected, rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_factors_are_orthonormal_in_the_metric_and_give_the_weight_back(m, n):
    w, a, b = case(m, n)
    left, s, right = metric_svd(w, a=a, b=b)
    eye = torch.eye(min(m, n), dtype=torch.float64)
    torch.testing.assert_close(left * s @ right, w)
    torch.testing.assert_close(left.mT @ twin.with_ridge(b, 1e-3) @ left, eye)
    torch.testing.assert_close(right @ twin.with_ridge(a, 1e-3) @ right.mT, eye)


def test_without_a_metric_or_with_the_identity_it_is_the_plain_one():
    w = random(6, 4)
    u, s, vh = thin_svd(w)
    plain = metric_svd(w)
    assert torch.equal(plain.s, s)
    assert torch.equal(plain.left, u)
    assert torch.equal(plain.right, vh)
    eyes = {"a": torch.eye(4).double(), "b": torch.eye(6).double()}
    identity = metric_svd(w, **eyes, ridge=0.0)
    torch.testing.assert_close(identity.s, s)
    torch.testing.assert_close(identity.left * identity.s @ identity.right, w)
    torch.testing.assert_close(
        identity.left[:, :2] * s[:2] @ identity.right[:2], u[:, :2] * s[:2] @ vh[:2]
    )


# --- what it minimises ----------------------------------------------------------------------------


def test_the_rest_of_the_spectrum_is_the_distance():
    w, a, b = case(5, 4)
    full_a, full_b = twin.with_ridge(a, 1e-3), twin.with_ridge(b, 1e-3)
    s = metric_svd(w, a=a, b=b).s
    for rank in range(1, 5):
        found = twin.metric_distance(w - nearest(w, a, b, rank), full_a, full_b)
        assert found == pytest.approx(float(s[rank:].square().sum()), rel=1e-8, abs=1e-12)


def test_no_random_matrix_of_the_rank_is_nearer_and_least_squares_end_there():
    w, a, b = case(6, 5)
    rank, full_a, full_b = 2, twin.with_ridge(a, 1e-3), twin.with_ridge(b, 1e-3)

    def distance(other):
        d = w - other
        return (full_b @ d @ full_a * d).sum()

    best = nearest(w, a, b, rank)
    least = float(distance(best))
    u, s, vh = thin_svd(w)
    assert least < 0.9 * float(distance(u[:, :rank] * s[:rank] @ vh[:rank]))
    for seed in range(500):
        size = 10.0 ** -(seed % 6)
        left, core, right = metric_svd(w, a=a, b=b)
        x = left[:, :rank] * core[:rank] + size * random(6, rank, seed=seed)
        y = right[:rank] + size * random(rank, 5, seed=1000 + seed)
        assert float(distance(x @ y)) >= least * (1 - 1e-12)
    y = random(rank, 5, seed=8)
    for _ in range(500):  # alternating least squares: each half solves its normal equations
        x = w @ full_a @ y.mT @ torch.linalg.inv(y @ full_a @ y.mT)
        y = torch.linalg.solve(x.mT @ full_b @ x, x.mT @ full_b @ w)
    assert float(distance(x @ y)) == pytest.approx(least, rel=1e-9)
    torch.testing.assert_close(x @ y, best, rtol=1e-5, atol=1e-6)


# --- what it does not depend on -------------------------------------------------------------------


@pytest.mark.parametrize("orthogonal", [True, False])
def test_another_basis_of_inputs_and_outputs_changes_nothing(orthogonal):
    w, a, b = case(6, 4)
    ridge = 1e-3 if orthogonal else 0.0
    t, r = random(4, 4, seed=5) + torch.eye(4), random(6, 6, seed=6) + torch.eye(6)
    if orthogonal:
        t, r = torch.linalg.qr(t)[0], torch.linalg.qr(r)[0]
    # x' = t x and y' = r y: gradients turn with the inverse transpose.
    back = torch.linalg.inv(r)
    turned = (r @ w @ torch.linalg.inv(t), t @ a @ t.mT, back.mT @ b @ back)
    s = metric_svd(w, a=a, b=b, ridge=ridge).s
    s_turned = metric_svd(turned[0], a=turned[1], b=turned[2], ridge=ridge).s
    torch.testing.assert_close(s_turned, s, rtol=1e-7, atol=1e-10)
    expected = r @ nearest(w, a, b, 2, ridge=ridge) @ torch.linalg.inv(t)
    torch.testing.assert_close(nearest(*turned, 2, ridge=ridge), expected, rtol=1e-6, atol=1e-8)


def test_the_size_of_gradients_scales_the_values_and_not_the_factors():
    w, a, b = case(6, 4)
    one, small = metric_svd(w, a=a, b=b), metric_svd(w, a=a, b=b * 1e-24)
    torch.testing.assert_close(small.s * 1e12, one.s)
    torch.testing.assert_close(
        small.left[:, :2] * small.s[:2] @ small.right[:2], nearest(w, a, b, 2)
    )


def test_entries_of_a_batch_are_decomposed_by_themselves():
    cases = [case(6, 4, seed=seed) for seed in (0, 10)]
    w, a, b = (torch.stack(each) for each in zip(*cases, strict=True))
    together = metric_svd(w, a=a, b=b)
    for i, (w_i, a_i, b_i) in enumerate(cases):
        torch.testing.assert_close(together.s[i], metric_svd(w_i, a=a_i, b=b_i).s)
    u, s, vh = truncated(together, 2)
    product = u * s.unsqueeze(-2) @ vh
    torch.testing.assert_close(product[1], nearest(*cases[1], 2))


def test_fewer_samples_than_inputs_are_no_obstacle():
    w, a, b = random(6, 8), covariance(8, samples=3), covariance(6, samples=2)
    found = metric_svd(w, a=a, b=b)
    torch.testing.assert_close(found.left * found.s @ found.right, w)
    assert metric_svd(w.float(), a=a.float(), b=b.float()).s.dtype == torch.float64


# --- the truncation in orthonormal factors --------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_truncated_is_the_same_matrix_in_orthonormal_factors(m, n):
    w, a, b = case(m, n)
    for rank in range(1, min(m, n) + 1):
        u, s, vh = truncated(metric_svd(w, a=a, b=b), rank)
        eye = torch.eye(rank, dtype=torch.float64)
        torch.testing.assert_close(u.mT @ u, eye)
        torch.testing.assert_close(vh @ vh.mT, eye)
        assert torch.equal(s, s.sort(descending=True).values)
        torch.testing.assert_close(u * s @ vh, nearest(w, a, b, rank))


def test_a_weight_of_low_rank_is_given_back():
    w = from_spectrum([3.0, 2.0, 0.0, 0.0], 6, 4)
    u, s, vh = truncated(metric_svd(w, a=covariance(4), b=covariance(6)), 3)
    torch.testing.assert_close(u * s @ vh, w)
    torch.testing.assert_close(s, torch.tensor([3.0, 2.0, 0.0]).double(), rtol=1e-9, atol=1e-9)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"a": torch.eye(5)}, ShapeError, r"a of shape \(4, 4\) .* got \(5, 5\)"),
        ({"b": torch.eye(4)}, ShapeError, r"b of shape \(6, 6\)"),
        ({"a": torch.full((4, 4), torch.nan)}, NonFiniteError, "NaN"),
        ({"b": torch.zeros(6, 6)}, NotPositiveDefiniteError, "positive trace"),
        ({"a": torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0]))}, NotPositiveDefiniteError, "ridge"),
        ({"ridge": -1.0}, ConfigError, "ridge of 0 or more"),
        ({"ridge": float("nan")}, ConfigError, "ridge to be a number, got nan"),
        ({"a": torch.eye(4, dtype=torch.int64)}, ConfigError, "real floating-point"),
    ],
)
def test_what_no_metric_is_made_of_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        metric_svd(random(6, 4), **given)


@pytest.mark.bad_input
@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(RankError, match="from 1 to 4"):
        truncated(metric_svd(random(6, 4)), rank)
