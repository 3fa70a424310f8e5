"""The truncation rule: thresholds, energies and budgets."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from orthotrain.errors import ConfigError, NonFiniteError, RankError, ShapeError
from orthotrain.linalg import effective_rank, numerical_rank, ranks_within_budget
from orthotrain.linalg.rank import difference_rtol, rounding_rtol
from reference import linalg as twins

modest = hypothesis.settings(deadline=None, max_examples=60)
EPS = torch.finfo(torch.float64).eps

# Ratios of small integers: sums of squares are exact, so twin and kernel round alike.
spectra = st.lists(st.integers(0, 64), min_size=1, max_size=9).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


def test_threshold_keeps_a_value_exactly_at_it():
    s = torch.tensor([8.0, 4.0, 2.0, 1.0])
    assert numerical_rank(s, rtol=0.25).item() == 3
    assert numerical_rank(s, rtol=0.2500001).item() == 2


def test_threshold_zero_keeps_zeros_and_any_other_drops_them():
    s = torch.tensor([1.0, 1e-30, 0.0, 0.0])
    assert numerical_rank(s, rtol=0.0).item() == 4
    assert numerical_rank(s, rtol=1e-38).item() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threshold_is_compared_in_the_precision_of_the_values(dtype: torch.dtype):
    # 0.7 rounds down in float32: against a float64 threshold it would be dropped.
    s = torch.tensor([1.0, 0.7, 0.1], dtype=torch.float32).to(dtype)
    rtol = 0.7 if dtype == torch.float32 else float(s[1])
    assert numerical_rank(s, rtol=rtol).item() == 2


def test_zero_spectrum_has_rank_zero():
    zeros = torch.zeros(2, 3)
    assert numerical_rank(zeros, rtol=0.1).tolist() == [0, 0]
    assert numerical_rank(zeros, energy=0.5).tolist() == [0, 0]
    assert numerical_rank(zeros, energy=1.0, total_energy=9.0).tolist() == [0, 0]
    assert numerical_rank(zeros, rtol=0.0).tolist() == [3, 3]


def test_energy_keeps_the_fewest_that_reach_it():
    s = torch.tensor([4.0, 2.0, 1.0])  # squares 16, 4, 1 of 21
    assert numerical_rank(s, energy=16 / 21).item() == 1
    assert numerical_rank(s, energy=16.001 / 21).item() == 2
    assert numerical_rank(s, energy=1.0).item() == 3


def test_all_energy_drops_only_zeros():
    assert numerical_rank(torch.tensor([3.0, 2.0, 0.0]), energy=1.0).item() == 2


def test_total_energy_keeps_repeated_cuts_from_compounding():
    s = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    total = float(s.square().sum())
    first = int(numerical_rank(s, energy=0.8, total_energy=total))
    again = int(numerical_rank(s[:first], energy=0.8, total_energy=total))
    compounded = int(numerical_rank(s[:first], energy=0.8))
    assert (first, again, compounded) == (2, 2, 2)
    # 25 of 30 is 83 %; nine tenths of 29 is more than 25, nine tenths of what a cut left is less.
    assert int(numerical_rank(s[:3], energy=0.95, total_energy=total)) == 3
    assert int(numerical_rank(s[:3], energy=0.85)) == 2


def test_total_energy_out_of_reach_keeps_all_but_zeros():
    s = torch.tensor([2.0, 1.0, 0.0])
    assert numerical_rank(s, energy=0.9, total_energy=100.0).item() == 2


def test_total_energy_may_differ_from_entry_to_entry():
    s = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    totals = torch.tensor([4.0, 5.0])
    assert numerical_rank(s, energy=1.0, total_energy=totals).tolist() == [1, 2]


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_energy_of_large_and_small_float32_spectra_is_finite(scale: float):
    s = torch.tensor([2.0, 1.0, 1e-4]) * scale
    assert numerical_rank(s, energy=0.9).item() == 2
    assert numerical_rank(s, energy=0.75).item() == 1


@modest
@hypothesis.given(spectra, st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75]))
def test_threshold_agrees_with_twin(s: torch.Tensor, rtol: float):
    assert numerical_rank(s, rtol=rtol).item() == twins.numerical_rank(s, rtol=rtol)


@modest
@hypothesis.given(spectra, st.floats(0.05, 0.99))
def test_energy_agrees_with_twin(s: torch.Tensor, energy: float):
    squares = [v * v for v in s.tolist()]
    # Where a partial sum meets the target to rounding, either answer is right.
    target = energy * math.fsum(squares)
    hypothesis.assume(
        all(abs(math.fsum(squares[:r]) - target) > 1e-9 * (1 + target) for r in range(len(s) + 1))
        or not s.any()
    )
    assert numerical_rank(s, energy=energy).item() == twins.numerical_rank(s, energy=energy)


@modest
@hypothesis.given(spectra, st.integers(-40, 40), st.sampled_from([0.1, 0.3, 0.7]))
def test_both_rules_are_scale_invariant(s: torch.Tensor, exponent: int, share: float):
    scaled = s * 2.0**exponent
    assert numerical_rank(scaled, rtol=share) == numerical_rank(s, rtol=share)
    assert numerical_rank(scaled, energy=share) == numerical_rank(s, energy=share)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rtol": 0.1, "energy": 0.9},
        {"rtol": -0.1},
        {"rtol": 1.0},
        {"rtol": math.nan},
        {"energy": 0.0},
        {"energy": 1.5},
        {"energy": math.nan},
        {"rtol": 0.1, "total_energy": 2.0},
        {"energy": 0.9, "total_energy": -1.0},
        {"energy": 0.9, "total_energy": math.nan},
        {"energy": 0.9, "total_energy": torch.ones(3)},
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings: dict[str, float]):
    with pytest.raises(ConfigError, match="numerical_rank") as caught:
        numerical_rank(torch.tensor([2.0, 1.0]), **settings)
    assert "got" in str(caught.value)


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, -0.5]], ids=["unsorted", "negative"])
def test_unsorted_and_negative_spectra_are_refused(values: list[float]):
    with pytest.raises(ConfigError, match="numerical_rank needs"):
        numerical_rank(torch.tensor(values), rtol=0.1)


def factored(m: int, n: int):
    """Stored numbers of a layer that stays dense until its factors are smaller."""
    return lambda rank: min(m * n, rank * (m + n) + rank * rank)


def test_budget_that_holds_everything_cuts_nothing():
    spectra = [torch.tensor([3.0, 2.0, 1.0]), torch.tensor([5.0, 4.0])]
    costs = [factored(3, 3), factored(2, 8)]
    full = costs[0](3) + costs[1](2)
    assert ranks_within_budget(spectra, costs=costs, budget=full, min_ranks=[1, 1]) == [3, 2]


def test_budget_of_the_minimum_gives_the_minimum():
    spectra = [torch.ones(6), torch.ones(6)]
    costs = [factored(6, 6), factored(6, 6)]
    least = costs[0](2) + costs[1](1)
    assert ranks_within_budget(spectra, costs=costs, budget=least, min_ranks=[2, 1]) == [2, 1]
    with pytest.raises(RankError, match="budget of at least") as caught:
        ranks_within_budget(spectra, costs=costs, budget=least - 1, min_ranks=[2, 1])
    assert str(least) in str(caught.value)


def test_budget_passes_a_plateau_where_small_cuts_save_nothing():
    # A square layer of width 10 stores as much as dense down to rank 4: 4 * 20 + 16 = 96.
    cost = factored(10, 10)
    assert cost(5) == cost(10) == 100
    steep = torch.tensor([0.1**i for i in range(10)], dtype=torch.float64)
    [rank] = ranks_within_budget([steep], costs=[cost], budget=99, min_ranks=[1])
    assert rank == 4


def test_budget_looks_past_a_cut_that_hardly_pays():
    # From 10 to 4 the first matrix saves 4 numbers, to 3 it saves 31 and loses hardly more. So it
    # loses less for a number than the second, whose single steps are cheaper than that first one.
    square = torch.tensor([1.0] * 3 + [0.02] * 7, dtype=torch.float64).sqrt()
    other = torch.tensor([20.0, 1.0, 1.0, 1.0], dtype=torch.float64).sqrt()
    costs = [factored(10, 10), lambda r: 10 * r]
    ranks = ranks_within_budget([square, other], costs=costs, budget=120, min_ranks=[1, 1])
    assert ranks == [3, 4]


def test_budget_is_relative_to_each_total():
    # Scaling one matrix by a thousand must not protect it.
    a = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    costs = [lambda r: 10 * r] * 2
    plain = ranks_within_budget([a, a], costs=costs, budget=40, min_ranks=[1, 1])
    scaled = ranks_within_budget([a, 1000 * a], costs=costs, budget=40, min_ranks=[1, 1])
    assert plain == scaled == [2, 2]


def test_weights_say_what_the_whole_of_each_matrix_counts():
    a = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    settings = {"costs": [lambda r: 10 * r] * 2, "budget": 40, "min_ranks": [1, 1]}
    assert ranks_within_budget([a, a], **settings, weights=[7.0, 7.0]) == [2, 2]
    assert ranks_within_budget([a, a], **settings, weights=[1.0, 100.0]) == [1, 3]
    # With sums of squares, one threshold on absolute energies over all: 16, 9, 9, 8.5 are kept.
    b = torch.tensor([3.0, 8.5**0.5, 0.1, 0.1], dtype=torch.float64)
    energies = [float(s.square().sum()) for s in (a, b)]
    assert ranks_within_budget([a, b], **settings, weights=energies) == [2, 2]
    smaller = [float(s.square().sum()) for s in (a, b / 10)]
    assert ranks_within_budget([a, b / 10], **settings, weights=smaller) == [3, 1]


@pytest.mark.bad_input
@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_that_count_nothing_sensible_are_refused(weight):
    with pytest.raises(ConfigError, match=r"weights\[0\] (= |to be a number, got nan)"):
        ranks_within_budget(
            [torch.ones(2)], costs=[lambda r: r], budget=2, min_ranks=[1], weights=[weight]
        )
    with pytest.raises(ConfigError, match="2 weights"):
        ranks_within_budget(
            [torch.ones(2)], costs=[lambda r: r], budget=2, min_ranks=[1], weights=[1.0, 1.0]
        )


def test_budget_takes_a_zero_matrix_first():
    spectra = [torch.zeros(4), torch.ones(4)]
    costs = [lambda r: r] * 2
    assert ranks_within_budget(spectra, costs=costs, budget=5, min_ranks=[1, 1]) == [1, 4]


positive_spectra = st.lists(st.integers(1, 30), min_size=2, max_size=5).map(
    lambda values: sorted((float(v) for v in values), reverse=True)
)


@modest
@hypothesis.given(st.lists(positive_spectra, min_size=1, max_size=3), st.floats(0, 1))
def test_budget_is_kept_and_lost_energy_is_near_the_least(
    values: list[list[float]], position: float
):
    costs = [factored(len(v), 2 * len(v) + 1) for v in values]
    least = sum(cost(1) for cost in costs)
    most = sum(cost(len(v)) for cost, v in zip(costs, values, strict=True))
    budget = least + int(position * (most - least))
    ones = [1] * len(values)
    ranks = ranks_within_budget(
        [torch.tensor(v) for v in values], costs=costs, budget=budget, min_ranks=ones
    )
    spent = sum(cost(r) for cost, r in zip(costs, ranks, strict=True))
    assert spent <= budget
    assert all(1 <= r <= len(v) for r, v in zip(ranks, values, strict=True))
    lost = sum(
        math.fsum(x * x for x in v[r:]) / math.fsum(x * x for x in v)
        for v, r in zip(values, ranks, strict=True)
    )
    best = twins.best_ranks(values, costs=costs, budget=budget, min_ranks=ones)
    assert lost >= best - 1e-12
    # Greedy on the hull is off by one cut at most, and no cut of one matrix loses more than this.
    largest_cut = max(math.fsum(x * x for x in v[1:]) / math.fsum(x * x for x in v) for v in values)
    assert lost <= best + largest_cut + 1e-12


@pytest.mark.parametrize("budget", range(10, 81, 10))
def test_budget_is_optimal_where_costs_are_linear(budget: int):
    values = [[9.0, 5.0, 2.0, 1.0], [3.0, 3.0, 3.0, 1.0]]
    costs = [lambda r: 10 * r] * 2
    if budget < 20:
        with pytest.raises(RankError):
            ranks_within_budget(
                [torch.tensor(v) for v in values], costs=costs, budget=budget, min_ranks=[1, 1]
            )
        return
    ranks = ranks_within_budget(
        [torch.tensor(v) for v in values], costs=costs, budget=budget, min_ranks=[1, 1]
    )
    lost = sum(
        math.fsum(x * x for x in v[r:]) / math.fsum(x * x for x in v)
        for v, r in zip(values, ranks, strict=True)
    )
    best = twins.best_ranks(values, costs=costs, budget=budget, min_ranks=[1, 1])
    assert lost == pytest.approx(best, abs=1e-12)


def test_no_spectra_need_no_budget():
    assert ranks_within_budget([], costs=[], budget=0, min_ranks=[]) == []


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"costs": []}, ConfigError),
        ({"min_ranks": [0]}, RankError),
        ({"min_ranks": [4]}, RankError),
        ({"costs": [lambda r: -r]}, ConfigError),
        ({"spectra": [torch.tensor([1.0, 2.0, 3.0])]}, ConfigError),
        ({"spectra": [torch.tensor([1.0, math.nan, 0.0])]}, NonFiniteError),
    ],
    ids=["lengths", "rank 0", "rank 4 of 3", "falling cost", "unsorted", "nan"],
)
def test_bad_budgets_are_refused(settings: dict, error: type[Exception]):
    usual = {
        "spectra": [torch.tensor([3.0, 2.0, 1.0])],
        "costs": [lambda r: r],
        "budget": 3,
        "min_ranks": [1],
    }
    arguments = usual | settings
    with pytest.raises(error, match="ranks_within_budget needs"):
        ranks_within_budget(arguments.pop("spectra"), **arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize("s", [torch.ones(2, 2), torch.ones(0), torch.tensor(1.0)], ids=str)
def test_budget_wants_one_spectrum_at_a_time(s: torch.Tensor):
    with pytest.raises((ShapeError, ConfigError), match=r"spectra\[0\]"):
        ranks_within_budget([s], costs=[lambda r: r], budget=3, min_ranks=[1])


# --- what rounding explains -------------------------------------------------------------------


def test_the_tolerance_of_a_matrix_and_of_a_difference():
    eps = torch.finfo(torch.float32).eps
    a = torch.ones(2, 4, 8)
    weight = torch.full((2, 32), 100.0)
    assert rounding_rtol(a) == 8 * eps
    assert rounding_rtol(a, eps=1e-3) == 8e-3
    assert rounding_rtol(a, eps=1.0) == 0.5
    assert difference_rtol(a, weight) == pytest.approx(100 * eps)
    # To which precision the difference itself is written says nothing.
    assert rounding_rtol(a.double(), difference_from=weight) == pytest.approx(100 * eps)
    assert rounding_rtol(a, difference_from=weight / 50) == 8 * eps
    assert (
        rounding_rtol(a * 1e-9, difference_from=weight) == 0.5 < difference_rtol(a * 1e-9, weight)
    )
    assert difference_rtol(0 * a, weight) == 0.0


def test_a_norm_beyond_float16_is_still_a_norm():
    a = torch.full((4, 8), 6e4, dtype=torch.float16)
    assert difference_rtol(a, a) == torch.finfo(torch.float16).eps


@pytest.mark.parametrize(("m", "n", "rank"), [(64, 64, 64), (16, 200, 16), (100, 100, 1)])
def test_the_rounding_of_a_weight_is_below_the_tolerance_of_its_difference(m, n, rank):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(m, n, generator=g, dtype=torch.float64)
    delta = 1e-5 * torch.eye(m, n, dtype=torch.float64)
    delta[rank:] = 0
    noise = torch.linalg.matrix_norm(weight - weight.float().double(), ord=2)
    assert noise < difference_rtol(delta, weight.float()) * delta.max()


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
