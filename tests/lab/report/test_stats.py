"""Spreads and paired comparisons against values worked out by hand."""

import math

import numpy as np
import pytest

from orthotrain.lab.report.load import SeedRun, Variant
from orthotrain.lab.report.stats import Measure, Spread, paired_by_seed, rank_correlation, short

ERROR = Measure("x", "x", lambda seed: seed.final("x"), digits=2, better="less")
SCORE = Measure("x", "x", lambda seed: seed.final("x"), digits=2, better="more")
NEITHER = Measure("x", "x", lambda seed: seed.final("x"))
RATIO = Measure("x", "x", lambda seed: seed.final("x"), better="less", logarithmic=True)


def variant(*values, first=0):
    seeds = tuple(SeedRun(first + i, {}, {"x": value}) for i, value in enumerate(values))
    return Variant("v", "v", "", seeds, len(seeds))


def test_a_spread_leaves_out_what_is_not_finite():
    spread = Spread.of([1.0, math.nan, 3.0, math.inf])
    assert spread.values == (1.0, 3.0)
    assert spread.mean == 2.0
    assert spread.std == pytest.approx(math.sqrt(2))
    assert not Spread.of([math.nan])


def test_a_comparison_is_paired_by_seed():
    ours, other = variant(9.0, 11.5, 13.0), variant(10.0, 12.0, 14.5)
    paired = paired_by_seed(ours, other, ERROR)
    # Differences -1, -0.5, -1.5: mean -1, deviation .5, margin 4.3027 * .5 / sqrt(3).
    assert paired.difference.mean == pytest.approx(-1.0)
    assert paired.difference.std == pytest.approx(0.5)
    assert paired.interval == pytest.approx((-1 - 1.24207, -1 + 1.24207), abs=1e-4)
    assert paired.verdict() == "within"
    swapped = Variant("v", "v", "", tuple(reversed(other.seeds)), 3)
    assert paired_by_seed(ours, swapped, ERROR).difference.values == paired.difference.values


def density(t, freedom):
    gamma = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
    return gamma / math.sqrt(freedom * math.pi) * (1 + t * t / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 30])
def test_the_interval_holds_95_percent_by_integration(seeds):
    ours = variant(*(float(i % 3) for i in range(seeds)))
    paired = paired_by_seed(ours, variant(*([0.0] * seeds)), ERROR)
    ends = paired.margin / (paired.difference.std / math.sqrt(seeds))
    inside = np.linspace(0.0, ends, 200_001)
    assert 2 * np.trapezoid(density(inside, seeds - 1), inside) == pytest.approx(0.95, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "less", "more", "neither"),
    [
        ([9.0, 11.1, 13.0], "better", "worse", "lower"),
        ([11.0, 13.1, 15.0], "worse", "better", "higher"),
        ([9.9, 12.2, 13.9], "within", "within", "within"),
        ([10.0, 12.0, 14.0], "within", "within", "within"),
        ([9.0, 11.1], "few", "few", "few"),
        ([9.0], "few", "few", "few"),
        ([], "not measured", "not measured", "not measured"),
    ],
)
def test_verdicts_follow_the_numbers_and_the_better_direction(values, less, more, neither):
    ours, other = variant(*values), variant(10.0, 12.0, 14.0)
    found = [paired_by_seed(ours, other, m).verdict() for m in (ERROR, SCORE, NEITHER)]
    assert found == [less, more, neither]


def test_as_many_seeds_decide_as_are_asked_for():
    paired = paired_by_seed(variant(9.0, 11.1, 13.0), variant(10.0, 12.0, 14.0), ERROR)
    assert (paired.verdict(3), paired.verdict(4)) == ("better", "few")
    # One seed has no interval, whatever is asked for.
    assert paired_by_seed(variant(9.0), variant(10.0), ERROR).verdict(1) == "few"


def test_only_common_seeds_are_compared():
    ours, other = variant(9.0, 8.0, first=1), variant(50.0, 10.0, 10.0)
    assert paired_by_seed(ours, other, ERROR).difference.values == pytest.approx((-1.0, -2.0))


def test_a_ratio_is_a_difference_of_logarithms():
    ours, other = variant(1e2, 1e3, 1e2), variant(1e5, 1e5, 1e5)
    paired = paired_by_seed(ours, other, RATIO)
    assert paired.difference.values == pytest.approx((-3.0, -2.0, -3.0))
    assert paired.change == pytest.approx(10 ** (-8 / 3))
    low, high = paired.interval
    assert low == pytest.approx(10 ** (-8 / 3 - 1.43422), rel=1e-4)
    assert high == pytest.approx(10 ** (-8 / 3 + 1.43422), rel=1e-4)
    assert paired.verdict() == "better"
    assert paired_by_seed(other, ours, RATIO).verdict() == "worse"


def test_an_infinite_seed_leaves_no_verdict():
    infinite = Measure("x", "x", lambda seed: seed.final("x") or math.inf, logarithmic=True)
    ours = variant(1e3, 0.0, 1e3)
    paired = paired_by_seed(ours, variant(1e5, 1e5, 1e5), infinite)
    assert (paired.verdict(), paired.infinite, paired.count) == ("infinite", 1, 2)
    assert infinite.over_seeds(ours).mean == pytest.approx(3.0)


def test_two_seeds_far_apart_do_not_overflow():
    paired = paired_by_seed(variant(1e150, 1.0), variant(1.0, 1e150), RATIO)
    assert paired.interval == (0.0, math.inf)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(1, 1), (2, 4), (3, 9)], 1.0),
        ([(1, 9), (2, 4), (3, 1)], -1.0),
        # Ranks 1, 2, 3, 4 and 1, 2.5, 2.5, 4.
        ([(1, 1), (2, 2), (3, 2), (4, 3)], 4.5 / math.sqrt(5 * 4.5)),
        ([(1, 1), (2, 2)], math.nan),
        ([(1, 1), (1, 2), (1, 3)], math.nan),
    ],
)
def test_rank_correlation_by_hand(pairs, expected):
    assert rank_correlation(pairs) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (6.8e4, "6.8e4"), (680.4, "680"), (5.312, "5.31"), (3.5e16, "3.5e16"), (4e-5, "4.0e-5"),
        (0.0, "0"), (math.inf, "infinite"), (9999.0, "9999"),
    ],
)  # fmt: skip
def test_short_numbers(value, shown):
    assert short(value) == shown
