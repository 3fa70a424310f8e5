"""Mutual information by histograms: known values, the twin, and what its bins do."""

import math

import pytest
import torch

from disentangle.grids import drawn, grid, noise
from orthotrain.disentangle import mutual_information
from orthotrain.errors import ConfigError, ShapeError
from reference import disentangle_scores as twins

EPS = torch.finfo(torch.float64).eps
# Sums of some hundred terms of entropies up to five nats; measured 12 eps.
BUDGET = 64 * EPS


def test_codes_equal_to_factors_tell_their_entropy_and_no_more():
    factors = grid(3, 4, 5, copies=2)
    table = mutual_information(factors.double(), factors)
    expected = torch.diag(torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64).log())
    assert (table - expected).abs().max() <= BUDGET
    assert (table >= 0).all()


@pytest.mark.parametrize(
    ("code", "nats"),
    [
        (lambda v: v // 2, math.log(2)),  # two values of four
        (lambda v: v % 2, math.log(2)),  # the same, and no monotone map
        (lambda v: (v - 1.5).abs(), math.log(2)),
        (lambda v: (v == 0).double(), math.log(4) - 0.75 * math.log(3)),
        (lambda v: v**3, math.log(4) - math.log(2) / 2),  # 0 and 1 share one of 20 bins of 27
        (lambda v: 0 * v, 0.0),
    ],
    ids=["halved", "parity", "folded", "first", "cubed", "nothing"],
)
def test_a_function_of_a_factor_tells_the_entropy_of_its_value(code, nats: float):
    factor = torch.arange(4).repeat(5)[:, None]
    assert mutual_information(code(factor.double()), factor).item() == pytest.approx(
        nats, abs=1e-14
    )


@pytest.mark.parametrize("bins", [2, 3, 20])
def test_agrees_with_the_twin(bins: int):
    factors = drawn(300, 2, 5, seed=1)
    codes = torch.cat([factors.double() + noise(300, 2, seed=2), noise(300, 1)], dim=1)
    expected = twins.information_table(codes.numpy(), factors.numpy(), bins)
    found = mutual_information(codes, factors, bins=bins)
    assert found.dtype == torch.float64
    assert (found - torch.from_numpy(expected)).abs().max() <= BUDGET


def test_an_interval_holds_its_lower_end_and_the_last_one_both():
    # Ends at 0, 1, 2, 3, 4: the value 1 begins the second interval, 4 closes the fourth.
    codes = torch.tensor([0.0, 0.9, 1.0, 1.9, 3.0, 4.0], dtype=torch.float64)[:, None].repeat(2, 1)
    factor = torch.tensor([0, 0, 1, 1, 2, 2])[:, None].repeat(2, 1)
    assert mutual_information(codes, factor, bins=4).item() == pytest.approx(math.log(3))
    # One interval less mixes .9 and 1 ... or not: ends at 0, 4/3, 8/3, 4.
    mixed = mutual_information(codes, factor, bins=3).item()
    assert mixed == pytest.approx(twins.information(codes[:, 0].numpy(), factor[:, 0].numpy(), 3))
    assert mixed < math.log(3) - 0.1


def test_independent_noise_measures_the_bias_the_docstring_names():
    factor = drawn(20_000, 8, seed=4)
    # Uniform codes fill every bin alike.
    codes = torch.rand(20_000, 30, generator=torch.Generator().manual_seed(5))
    mean = mutual_information(codes, factor).mean().item()
    bias = 19 * 7 / (2 * 20_000)
    # 30 values of a chi-square of 133 degrees: a standard error of 2.2 %.
    assert mean == pytest.approx(bias, rel=0.1)


def test_constant_factors_and_dimensions_tell_nothing_and_keep_their_place():
    factors = torch.cat([grid(3, 2, copies=3), torch.ones(18, 1, dtype=torch.int64)], dim=1)
    codes = torch.cat([torch.zeros(18, 1), factors.float()], dim=1)
    table = mutual_information(codes, factors)
    assert table.shape == (4, 3)
    assert table[0].tolist() == table[3].tolist() == [0.0] * 3
    assert table[:, 2].tolist() == [0.0] * 4
    assert table[1, 0].item() == pytest.approx(math.log(3))


@pytest.mark.bad_input
@pytest.mark.parametrize("bins", [1, 0, -3, 2.0, True], ids=str)
def test_bins_that_tell_nothing_are_an_error(bins):
    with pytest.raises(ConfigError, match="mutual_information needs bins"):
        mutual_information(noise(50, 2), drawn(50, 2), bins=bins)


@pytest.mark.bad_input
def test_fewer_samples_than_cells_are_an_error_that_says_how_many():
    factor = torch.arange(7).repeat(10)[:, None]
    codes = torch.linspace(0, 1, 70)[:, None]
    mutual_information(codes, factor, bins=10)
    with pytest.raises(ShapeError, match=r"11 bins times 7 values, got 70; draw at least 77"):
        mutual_information(codes, factor, bins=11)
    # Bins that nothing falls into do not count.
    mutual_information((codes > 0.5).float(), factor, bins=11)
