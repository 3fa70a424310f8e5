"""Modularity: known values and the twin."""

import pytest
import torch

from disentangle.grids import drawn, grid, noise
from orthotrain.disentangle import chance_level, modularity
from reference import disentangle_scores as twins

EPS = torch.finfo(torch.float64).eps
BUDGET = 64 * EPS


@pytest.mark.parametrize("bins", [4, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_the_twin(bins: int, seed: int):
    factors = drawn(400, 2, 5, 3, seed=seed)
    mixing = torch.tensor([[1.0, 0.0, 0.5], [0.3, 1.0, 0.0], [0.0, 0.6, 1.0]]).double()
    codes = factors.double() @ mixing + 0.2 * noise(400, 3, seed=seed + 9)
    codes = torch.cat([codes, noise(400, 1), torch.ones(400, 1)], dim=1)
    expected = twins.modularity(codes.numpy(), factors.numpy(), bins)
    assert 0.3 < expected < 0.97
    assert modularity(codes, factors, bins=bins) == pytest.approx(expected, abs=BUDGET)


@pytest.mark.parametrize("columns", [[0, 1, 2], [0, 0, 1, 2, 2], [1]], ids=str)
def test_copied_and_missing_dimensions_cost_nothing(columns: list[int]):
    factors = grid(3, 4, 5, copies=2)
    assert modularity(factors[:, columns].double(), factors) == pytest.approx(1, abs=BUDGET)


def test_a_turn_by_45_degrees_scores_zero():
    factors = grid(4, 4, copies=3)
    sum_and_difference = factors.double() @ torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
    assert modularity(sum_and_difference, factors) == pytest.approx(0, abs=BUDGET)


def test_one_of_three_dimensions_that_tells_two_of_three_factors():
    factors = grid(3, 3, 3, copies=3)
    codes = factors.double()
    codes[:, 0] = 3 * codes[:, 0] + codes[:, 1]
    # Both at the same information: 1 - 1 / (3 - 1).
    assert modularity(codes, factors) == pytest.approx((0.5 + 1 + 1) / 3, abs=BUDGET)


def test_a_dimension_that_tells_exactly_nothing_does_not_count():
    factors = grid(3, 5, copies=5)
    # Varies, yet is independent of both factors to the last sample. Rounding leaves 9e-16 nats
    # about the second one, which must not pass for a preference.
    nuisance = torch.arange(5).repeat_interleave(15).double()[:, None]
    codes = torch.cat([nuisance, factors.double()], dim=1)
    assert modularity(codes, factors) == pytest.approx(1, abs=BUDGET)
    assert modularity(nuisance, factors) == 0.0


def test_chance_with_unequal_factors_is_what_the_docstring_says():
    factors = drawn(10_000, 3, 6, 32, 32, seed=2)
    chance = chance_level(modularity, noise(10_000, 6, seed=3), factors, seed=0, repeats=5)
    assert chance.level == pytest.approx(0.7, abs=0.05)
