"""The level of a score without relation between codes and factors."""

import statistics

import pytest
import torch

from disentangle.grids import drawn, grid, noise
from orthotrain.disentangle import chance_level, mig, sap
from orthotrain.errors import ConfigError, OrthotrainWarning, ShapeError


def test_codes_equal_to_factors_fall_to_chance():
    factors = grid(8, 8, copies=20)
    assert mig(factors.double(), factors) == pytest.approx(1)
    chance = chance_level(mig, factors.double(), factors, seed=0)
    # The bias of a gap of two estimates, at most 7 * 7 / (2 * 1280) over log 8.
    assert 0 < chance.level < 49 / 2560 / 2
    assert len(chance.values) == 10
    assert chance.level == pytest.approx(statistics.fmean(chance.values))
    assert chance.spread == pytest.approx(statistics.stdev(chance.values))


def test_what_is_permuted_is_the_pairing_alone():
    codes, factors = noise(60, 3), drawn(60, 2, 3)
    seen = []

    def spy(codes_now: torch.Tensor, factors_now: torch.Tensor) -> float:
        seen.append((codes_now, factors_now))
        return float(len(seen))

    chance = chance_level(spy, codes, factors, seed=4, repeats=3)
    assert chance.values == (1.0, 2.0, 3.0)
    assert (chance.level, chance.spread) == (2.0, 1.0)
    rows = sorted(factors.tolist())
    for codes_now, factors_now in seen:
        assert torch.equal(codes_now, codes)
        assert sorted(factors_now.tolist()) == rows
        assert not torch.equal(factors_now, factors)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_follows_its_seed_and_leaves_the_global_one():
    codes, factors = noise(200, 2), drawn(200, 3, 4)
    state = torch.get_rng_state()
    first, again, other = (
        chance_level(sap, codes, factors, seed=seed, repeats=2) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_does_not_repeat_the_warning_about_a_constant_factor():
    factors = torch.cat([drawn(200, 3), torch.ones(200, 1, dtype=torch.int64)], dim=1)
    with pytest.warns(OrthotrainWarning):
        mig(noise(200, 2), factors)
    # Warnings are errors here.
    assert chance_level(mig, noise(200, 2), factors, seed=0).level >= 0


@pytest.mark.bad_input
def test_bad_input_is_named():
    codes, factors = noise(60, 3), drawn(60, 2, 3)
    with pytest.raises(ConfigError, match="chance_level needs repeats"):
        chance_level(mig, codes, factors, seed=0, repeats=1)
    with pytest.raises(ConfigError, match="chance_level needs seed"):
        chance_level(mig, codes, factors, seed=-1)
    with pytest.raises(ShapeError, match="chance_level needs one row of factors"):
        chance_level(mig, codes[1:], factors, seed=0)
