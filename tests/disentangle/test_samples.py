"""What every score of codes promises: one table, one suite; shared checks and chance levels."""

import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from disentangle.grids import drawn, grid, noise
from orthotrain import disentangle
from orthotrain.disentangle import chance_level, mig, sap
from orthotrain.disentangle.samples import checked_samples, live_dimensions
from orthotrain.errors import (
    ConfigError,
    MissingPackageError,
    NonFiniteError,
    OrthotrainWarning,
    ShapeError,
)
from reference.matrices import generator

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Score:
    """A row: how to call a score, the fewest factors it takes, and what it promises.

    ``rounding`` is the budget for what changes rounding alone. Trees and machines may put a
    sample on the other side of a threshold, so they are held to a value by other tests.
    """

    name: str
    call: Callable[[Tensor, Tensor], float]
    function: str
    min_factors: int = 1
    rounding: float = 64 * EPS
    blind_to_names: bool = True
    held_out: bool = False

    def __str__(self) -> str:
        return self.name


def forest(codes: Tensor, factors: Tensor) -> float:
    return disentangle.dci(codes, factors, model="random_forest").disentanglement


FAST = (
    Score("mig", disentangle.mig, "mig"),
    Score("sap-continuous", disentangle.sap, "sap", blind_to_names=False),
    Score("modularity", disentangle.modularity, "modularity", min_factors=2),
)
FITTED = (
    Score("sap-discrete", partial(disentangle.sap, kind="discrete"), "sap", held_out=True),
    Score("dci", forest, "dci", min_factors=2, held_out=True),
)  # fmt: skip
SCORES = (*FAST, *FITTED)
every_score = pytest.mark.parametrize("score", SCORES, ids=str)
# Trees take a tenth of a second a factor, and what they are given is made by the shared checks.
light_score = pytest.mark.parametrize("score", [*FAST, FITTED[0]], ids=str)
fast_score = pytest.mark.parametrize("score", FAST, ids=str)


def example(n: int = 150, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Codes that tell the factors in part, in three live dimensions."""
    factors = drawn(n, 3, 4, seed=seed)
    mixing = torch.tensor([[1.0, 0.4, 0.0], [0.2, 1.0, 0.5]], dtype=torch.float64)
    return factors.double() @ mixing + 0.3 * noise(n, 3, seed=seed + 1), factors


def global_states() -> tuple:
    numpys = np.random.get_state()  # noqa: NPY002 - the state that must not move
    return torch.get_rng_state().tolist(), str(numpys)


@fast_score
def test_perfect_codes_score_one(score: Score):
    factors = grid(3, 4, 5, copies=4)
    assert score.call(factors.double(), factors) == pytest.approx(1, abs=1e-12)
    # Another order, sign, scale and place of the dimensions is the same representation.
    scale, shift = torch.tensor([1e3, -2.0, 1e-3]), torch.tensor([-7.0, 1e3, 0.5])
    other = (factors.double() * scale + shift)[:, [2, 0, 1]]
    assert score.call(other, factors) == pytest.approx(1, abs=1e-12)


@fast_score
def test_order_sign_scale_and_shift_of_dimensions_change_nothing(score: Score):
    codes, factors = example()
    value = score.call(codes, factors)
    assert 0 < value < 1
    assert score.call(codes[:, [2, 0, 1]], factors) == pytest.approx(value, abs=score.rounding)
    assert score.call(-codes, factors) == pytest.approx(value, abs=score.rounding)
    powers = torch.tensor([2.0**500, 2.0**-500, -4.0], dtype=torch.float64)
    assert score.call(codes * powers, factors) == pytest.approx(value, abs=score.rounding)
    # A shift costs the digits it takes: 1e3 times eps.
    moved = score.call(codes * 3 + 1e3, factors)
    assert moved == pytest.approx(value, abs=1e4 * score.rounding)


@pytest.mark.parametrize("score", FITTED[:1], ids=str)
def test_scale_by_powers_of_two_changes_no_bit_of_a_fit(score: Score):
    codes, factors = example()
    value = score.call(codes, factors)
    powers = torch.tensor([2.0**500, 0.25, 2.0**-500], dtype=torch.float64)
    assert score.call(codes * powers, factors) == value


@light_score
def test_factor_columns_and_rows_have_no_order(score: Score):
    codes, factors = example()
    if not score.held_out:
        order = torch.randperm(len(codes), generator=generator(8))
        moved = score.call(codes[order], factors[order])
        assert moved == pytest.approx(score.call(codes, factors), abs=1e3 * EPS)
    value = score.call(codes, factors)
    assert score.call(codes, factors.flip(1)) == pytest.approx(value, abs=score.rounding)


@light_score
def test_names_of_factor_values_mean_nothing_where_that_is_promised(score: Score):
    codes, factors = example()
    names = torch.tensor([-50, 7, 9000, 10_000])
    value = score.call(codes, factors)
    assert (score.call(codes, names[factors]) == value) == score.blind_to_names


@light_score
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_codes_of_less_precision_are_taken_at_face_value(score: Score, dtype: torch.dtype):
    codes, factors = example()
    rounded = codes.to(dtype)
    assert score.call(rounded, factors) == score.call(rounded.double(), factors)


@light_score
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32], ids=str)
def test_any_integer_dtype_is_taken(score: Score, dtype: torch.dtype):
    codes, factors = example()
    assert score.call(codes, factors.to(dtype)) == score.call(codes, factors)


@every_score
def test_input_and_random_state_are_left_alone(score: Score):
    codes, factors = example()
    codes.requires_grad_()
    wide = torch.cat([codes, codes], dim=1)[:, ::2][:, :3]
    before = wide.detach().clone(), factors.clone()
    state = global_states()
    first = score.call(wide, factors)
    assert isinstance(first, float)
    assert score.call(wide.detach().contiguous(), factors) == first
    assert torch.equal(wide, before[0])
    assert torch.equal(factors, before[1])
    assert global_states() == state


@every_score
def test_dead_dimensions_between_the_live_ones(score: Score):
    codes, factors = example()
    dead = torch.full((len(codes), 1), 0.3, dtype=torch.float64)
    beside = torch.cat([dead, codes[:, :1], dead, codes[:, 1:]], dim=1)
    expected = score.call(codes, factors)
    assert score.call(beside, factors) == pytest.approx(expected, abs=score.rounding)


@light_score
def test_a_dimension_that_varies_by_rounding_is_constant(score: Score):
    codes, factors = example()
    trembling = (0.7 + 2e-7 * noise(len(codes), 1, seed=5)).float()
    assert len(trembling.unique()) > 5
    shown = torch.cat([codes.float(), trembling], dim=1)
    still = torch.cat([codes.float(), torch.full_like(trembling, 0.7)], dim=1)
    assert score.call(shown, factors) == score.call(still, factors)


@every_score
def test_codes_that_are_all_constant_score_zero(score: Score):
    factors = grid(3, 4, copies=4)
    assert score.call(torch.full((len(factors), 2), 0.1), factors) == 0.0
    assert score.call(torch.full((len(factors), 1), 1e30), factors) == 0.0


@light_score
def test_a_factor_with_one_value_is_left_out_with_a_warning(score: Score):
    codes, factors = example()
    constant = torch.full_like(factors[:, :1], 5)
    beside = torch.cat([factors[:, :1], constant, factors[:, 1:], constant], dim=1)
    with pytest.warns(OrthotrainWarning, match=f"{score.function}: column 1, 3 of the factors"):
        value = score.call(codes, beside)
    assert value == score.call(codes, factors)


@pytest.mark.bad_input
@every_score
def test_factors_that_do_not_vary_are_an_error(score: Score):
    codes, factors = example()
    with pytest.raises(ConfigError, match=f"{score.function} needs at least {score.min_factors}"):
        score.call(codes, torch.zeros_like(factors))
    if score.min_factors == 2:
        with pytest.raises(ConfigError, match="got 1 of 1"):
            score.call(codes, factors[:, :1])
    else:
        assert 0 <= score.call(codes, factors[:, :1]) <= 1


@pytest.mark.bad_input
@every_score
def test_bad_shapes_are_named(score: Score):
    codes, factors = example()
    for bad in (codes[:, 0], codes[None], codes[:, :0], codes[:0]):
        with pytest.raises(ShapeError, match=rf"{score.function} needs codes of shape \(n, d\)"):
            score.call(bad, factors)
    for bad in (factors[:, 0], factors[None], factors[:, :0], factors[:0]):
        with pytest.raises(ShapeError, match=rf"{score.function} needs factors of shape \(n, f\)"):
            score.call(codes, bad)
    with pytest.raises(ShapeError, match=r"one row of factors .* \(149, 3\) and .* \(150, 2\)"):
        score.call(codes[1:], factors)


@pytest.mark.bad_input
@every_score
def test_bad_numbers_are_named(score: Score):
    codes, factors = example()
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = codes.clone()
        broken[7, 1] = bad
        with pytest.raises(NonFiniteError, match=score.function):
            score.call(broken, factors)
    with pytest.raises(ConfigError, match="real floating-point"):
        score.call(factors, factors)
    for dtype in (torch.float32, torch.bool, torch.complex64):
        with pytest.raises(
            ConfigError, match=f"{score.function} needs a whole-number tensor, got factors"
        ):
            score.call(codes, factors.to(dtype))


@pytest.mark.bad_input
@every_score
def test_too_few_samples_are_an_error(score: Score):
    codes, factors = example()
    few = 2 if score.function == "sap" else 3
    factors = torch.arange(few)[:, None] + torch.arange(2)
    with pytest.raises(ShapeError, match=f"{score.function} needs .*draw"):
        score.call(codes[:few], factors)


@pytest.mark.bad_input
@pytest.mark.parametrize("function", ["sap", "dci"])
def test_a_value_in_one_part_alone_is_an_error(function: str):
    codes, factors = example()
    factors[100, 1] = 77
    with pytest.raises(ShapeError, match=r"of the 5 values in column 1 .* 150 samples leave"):
        {score.function: score for score in FITTED}[function].call(codes, factors)


@pytest.mark.bad_input
@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None], ids=str)
@pytest.mark.parametrize("score", FITTED, ids=str)
def test_a_seed_that_scikit_learn_does_not_take_is_an_error(score: Score, seed):
    call = {"sap": partial(disentangle.sap, kind="discrete"), "dci": disentangle.dci}
    with pytest.raises(ConfigError, match=f"{score.function} needs seed"):
        call[score.function](*example(), seed=seed)


@pytest.mark.bad_input
@pytest.mark.parametrize(("score", "module"), [(FITTED[0], "svm"), (FITTED[1], "ensemble")])
def test_missing_scikit_learn_is_named(score: Score, module: str, monkeypatch):
    monkeypatch.setitem(sys.modules, f"sklearn.{module}", None)
    with pytest.raises(MissingPackageError, match=r'pip install "orthotrain\[lab\]"'):
        score.call(*example())


def test_scores_without_a_fit_do_not_need_scikit_learn(monkeypatch):
    for name in ("svm", "ensemble", "linear_model"):
        monkeypatch.setitem(sys.modules, f"sklearn.{name}", None)
    for score in FAST:
        assert score.call(*example()) > 0


# --- shared rules -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "step", "lives"),
    [
        (torch.float32, 8, False),
        (torch.float32, 512, True),
        (torch.float64, 8, False),
        (torch.float64, 512, True),
    ],
    ids=str,
)
def test_a_dimension_lives_if_it_varies_by_more_than_its_rounding(dtype, step: int, lives: bool):
    # From 1 to 1 + step eps and back: a deviation of step / 2 roundings.
    column = 1 + step * torch.finfo(dtype).eps * (torch.arange(50) % 2).to(dtype)
    codes = torch.stack([column, -column, column * 2.0**40], dim=1)
    assert live_dimensions(codes).tolist() == [lives] * 3


def test_a_dimension_of_zeros_is_dead_and_one_of_tiny_numbers_lives():
    column = torch.randn(50, generator=generator(0), dtype=torch.float64)
    codes = torch.stack([0 * column, 1e-300 * column, 1e300 * column], dim=1)
    assert live_dimensions(codes).tolist() == [False, True, True]
    # Half precision is coarse, but a number in it is meant.
    coarse = (1 + 0.02 * column).bfloat16()[:, None]
    assert live_dimensions(coarse).tolist() == [True]


def test_parts_are_two_thirds_and_the_rest_and_follow_the_seed():
    samples = checked_samples("mig", *example())
    train, test = samples.split("mig", seed=0)
    assert len(train) == 100
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(150))
    again, other = samples.split("mig", seed=0)[0], samples.split("mig", seed=1)[0]
    assert torch.equal(train, again)
    assert not torch.equal(train, other)
    # A sorted input must not put all of a value into one part.
    assert not torch.equal(train.sort().values, torch.arange(100))


def test_warnings_name_the_caller():
    codes, factors = example()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        disentangle.mig(codes, torch.cat([factors, 0 * factors[:, :1]], dim=1))
    (warning,) = seen
    assert "orthotrain/disentangle" not in Path(warning.filename).as_posix()


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
