"""Mutual information gap: known values and the twin."""

import math

import pytest
import torch

from disentangle.grids import drawn, grid, noise
from orthotrain.disentangle import mig
from reference import disentangle_scores as twins

EPS = torch.finfo(torch.float64).eps
BUDGET = 64 * EPS


@pytest.mark.parametrize("bins", [4, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_the_twin(bins: int, seed: int):
    factors = drawn(400, 2, 5, 3, seed=seed)
    codes = torch.cat([factors.double() + 0.4 * noise(400, 3, seed=seed + 9), noise(400, 1)], dim=1)
    expected = twins.mig(codes.numpy(), factors.numpy(), bins)
    assert 0.05 < expected < 0.95
    assert mig(codes, factors, bins=bins) == pytest.approx(expected, abs=BUDGET)


@pytest.mark.parametrize(
    ("columns", "score"),
    [
        ([0, 1], 1.0),
        ([1, 1, 0], 0.5),  # the second factor has no leader
        ([0, 0, 1, 1], 0.0),
        ([0], 0.5),  # the second factor is told by none
    ],
    ids=str,
)
def test_copied_and_missing_dimensions(columns: list[int], score: float):
    factors = grid(4, 4, copies=2)
    assert mig(factors[:, columns].double(), factors) == pytest.approx(score, abs=BUDGET)


def test_a_turn_by_45_degrees_scores_zero():
    factors = grid(4, 4, copies=3)
    sum_and_difference = factors.double() @ torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
    assert mig(sum_and_difference, factors) == pytest.approx(0, abs=BUDGET)


def test_a_dimension_that_tells_two_factors_is_not_punished():
    factors = grid(3, 3, copies=5)
    both = (3 * factors[:, :1] + factors[:, 1:]).double()
    assert mig(both, factors) == pytest.approx(1, abs=BUDGET)


def test_a_rougher_second_dimension_takes_its_share():
    # All four values against two of them: log 4 - log 2 over log 4.
    factor = torch.arange(4).repeat(5)[:, None]
    codes = torch.cat([factor, factor // 2], dim=1).double()
    assert mig(codes, factor) == pytest.approx(0.5, abs=BUDGET)


@pytest.mark.parametrize(
    ("values", "bins", "score"), [(3, 20, 1), (20, 20, 1), (32, 20, 0.85), (32, 32, 1)], ids=str
)
def test_a_dimension_cannot_tell_more_values_than_bins(values: int, bins: int, score: float):
    factors = grid(values, 2, copies=20)
    codes = factors[:, :1].double()
    # The other factor is told by none, so it adds 0 to the mean of two.
    assert 2 * mig(codes, factors, bins=bins) == pytest.approx(score, abs=5e-4)
    if (values, bins) == (32, 20):
        # Ends 1.55 apart: 12 intervals hold two values and 8 hold one.
        told = math.log(32) - 12 * 2 / 32 * math.log(2)
        assert 2 * mig(codes, factors) == pytest.approx(told / math.log(32), abs=BUDGET)


def test_independent_noise_scores_near_zero():
    factors = drawn(10_000, 3, 6, 32, seed=2)
    # The gap of two biased estimates; the bias itself, 19 * 31 / 20,000 over log 32, is .0085.
    assert 0 < mig(noise(10_000, 6, seed=3), factors) < 0.0085


def test_a_monotone_map_that_crowds_values_into_one_bin_shows():
    factors = grid(8, 8, copies=20)
    crowded = (3.0 * factors).exp().double()
    assert mig(factors.double(), factors) == pytest.approx(1, abs=BUDGET)
    assert mig(crowded, factors) < 0.5
