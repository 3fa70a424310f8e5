"""End values, references and paired comparisons against values worked out by hand."""

import math

import numpy as np
import pytest

from lab.report.synthetic_spectral import seed_run, treated
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.paired import T_QUANTILES, over_seeds
from orthotrain.lab.report.spectral.measures import (
    LARGEST,
    RIDGED,
    SENSES,
    TEST_ERROR,
    compare,
    condition_outcomes,
    direct_parts,
    end_rank,
    find,
    group_of,
    is_pooling,
    rate_ratio,
    reference_of,
    share_used,
)

RANGE, _, FLOAT32, FLOAT64 = SENSES


def run_of(tmp_path, *variants, **info):
    return Run(tmp_path, "run", {"family": "spectral", **info}, None, variants, ())


def test_the_end_is_the_geometric_mean_of_the_last_tenth_of_records():
    values = [1.0] * 18 + [1e2, 1e6]
    assert RANGE.value(seed_run(0, condition_range=values)) == pytest.approx(1e4)
    # Eleven records: a tenth rounded up are two.
    assert RANGE.value(seed_run(0, condition_range=[1.0] * 9 + [10, 1e5])) == pytest.approx(1e3)
    assert RANGE.value(seed_run(0, condition_range=[7.0])) == pytest.approx(7.0)
    assert math.isnan(RANGE.value(seed_run(0)))


def test_null_is_infinite_in_naive_senses_only_and_the_majority_decides():
    start = [1.0] * 27
    few = seed_run(0, condition_float64=[*start, 1e16, None, 1e18])
    assert FLOAT64.value(few) == pytest.approx(1e17)
    assert math.isinf(FLOAT64.value(seed_run(0, condition_float64=[*start, 1e16, None, None])))
    assert math.isnan(RIDGED.value(seed_run(0, condition_ridge=[None])))


def test_null_is_no_number_where_the_matrix_had_none():
    broken = seed_run(0, condition_float32=[None], rank=[None])
    assert math.isnan(FLOAT32.value(broken))


def test_a_weight_is_not_taken_for_a_covariance():
    seed = seed_run(0, condition_range=[5.0], what="weight")
    assert math.isnan(RANGE.value(seed))


def test_rank_and_size_at_the_end():
    assert end_rank(seed_run(0, rank=[20] * 18 + [27, 26], size=[64] * 20)) == (26.5, 64.0)


def density(t, freedom):
    gamma = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
    return gamma / math.sqrt(freedom * math.pi) * (1 + t * t / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize("freedom", range(1, 21))
def test_quantiles_of_student_by_integration(freedom):
    quantile = T_QUANTILES[freedom - 1]
    ends = np.linspace(0.0, quantile, 20_001)
    below = 0.5 + float(np.trapezoid(density(ends, freedom), ends))
    # Half a unit of the third decimal, times the density there.
    assert below == pytest.approx(0.975, abs=5.1e-4 * density(quantile, freedom))


def test_a_comparison_is_paired_by_seed():
    ours = treated("nog", [9.0, 11.5, 13.0])
    other = treated("root", [10.0, 12.0, 14.5])
    paired = compare(ours, other, TEST_ERROR)
    # Differences -1, -0.5, -1.5: mean -1, deviation .5, margin 4.303 * .5 / sqrt(3).
    assert paired.difference.mean == pytest.approx(-1.0)
    assert paired.difference.std == pytest.approx(0.5)
    assert paired.interval == pytest.approx((-1 - 1.24217, -1 + 1.24217), abs=1e-4)
    assert paired.outcome == "inside"
    swapped = Variant(other.name, "x", "", tuple(reversed(other.seeds)), 3, other.treatments)
    assert compare(ours, swapped, TEST_ERROR).difference.values == paired.difference.values


@pytest.mark.parametrize(
    ("errors", "outcome"),
    [
        ([9.0, 11.0, 13.0], "lower"),
        ([11.0, 13.0, 15.0], "higher"),
        ([9.9, 12.2, 13.9], "inside"),
        ([9.0], "single"),
        ([], "unknown"),
    ],
)
def test_outcomes_in_both_directions(errors, outcome):
    other = treated("root", [10.0, 12.0, 14.0])
    # Equal differences have no deviation, so a hair of it is added.
    ours = treated("nog", [e + 1e-6 * i for i, e in enumerate(errors)])
    assert compare(ours, other, TEST_ERROR).outcome == outcome


def test_only_common_seeds_are_compared():
    ours = treated("nog", [9.0, 8.0], first=1)
    other = treated("root", [50.0, 10.0, 10.0])
    assert compare(ours, other, TEST_ERROR).difference.values == pytest.approx((-1.0, -2.0))


def test_a_ratio_is_a_difference_of_logarithms():
    ours = treated("nog", [1, 1, 1], condition_range=[1e2, 1e3, 1e2])
    other = treated("root", [1, 1, 1], condition_range=[1e5, 1e5, 1e5])
    paired = compare(ours, other, RANGE)
    assert paired.difference.values == pytest.approx((-3.0, -2.0, -3.0))
    assert paired.ratio == pytest.approx(10 ** (-8 / 3))
    low, high = paired.interval
    assert low == pytest.approx(10 ** (-8 / 3 - 1.43433), rel=1e-4)
    assert high == pytest.approx(10 ** (-8 / 3 + 1.43433), rel=1e-4)
    assert paired.outcome == "lower"
    assert compare(other, ours, RANGE).outcome == "higher"


def test_an_infinite_seed_leaves_no_verdict():
    ours = treated("nog", [1, 1, 1], condition_float64=[1e3, None, 1e3])
    other = treated("root", [1, 1, 1], condition_float64=[1e5, 1e5, 1e5])
    paired = compare(ours, other, FLOAT64)
    assert (paired.outcome, paired.infinite, paired.count) == ("infinite", 1, 2)
    assert over_seeds(ours, FLOAT64).mean == pytest.approx(3.0)


def test_two_seeds_far_apart_do_not_overflow():
    ours = treated("nog", [1, 1], condition_float64=[1e150, 1.0])
    other = treated("root", [1, 1], condition_float64=[1.0, 1e150])
    low, high = compare(ours, other, FLOAT64).interval
    assert (low, high) == (0.0, math.inf)


def test_the_ridge_of_a_batch_norm_is_not_compared_with_that_of_the_layer():
    layer = treated("root", [1, 1], condition_ridge=[10.0, 10.0], largest=[1.0, 1.0])
    batch_norm = treated("", [1, 1], condition_ridge=[1e5, 1e5], largest=[1.0, 1.0])
    assert compare(batch_norm, layer, RIDGED).outcome == "unknown"
    assert compare(batch_norm, layer, LARGEST).outcome == "inside"
    assert [p.measure.key for p in condition_outcomes(layer, batch_norm)] == []


def test_who_is_held_against_whom(tmp_path):
    names = ("", "root", "ns", "nog", "olr", "nog-olr", "ow", "nog-ow", "nog-ow-olr")
    fixed = ("fixed", "nog-fixed")
    variants = {name: treated(name, [1.0]) for name in (*names, *fixed)}
    run = run_of(tmp_path, *variants.values(), baseline="baseline")
    assert run.baseline is variants[""]
    assert find(run) is variants["root"]
    assert find(run, "olr", "nog") is variants["nog-olr"]
    assert find(run, "sn") is None
    against = {name: reference_of(run, v) for name, v in variants.items()}
    assert against["root"] is None
    assert all(against[n] is variants["root"] for n in (*names, "fixed") if n != "root")
    assert against["nog-fixed"] is variants["fixed"]
    parts = {name: [p.name for p in direct_parts(run, v)] for name, v in variants.items()}
    assert parts["nog-ow-olr"] == ["nog-olr", "nog-ow"]
    assert parts["nog-olr"] == ["nog", "olr"]
    assert parts["nog"] == parts["root"] == parts[""] == parts["nog-fixed"] == []
    lonely = run_of(tmp_path, variants["root"], variants["nog-ow"])
    assert direct_parts(lonely, variants["nog-ow"]) == ()
    groups = [group_of(run, v) for v in variants.values()]
    assert groups[:3] == ["reference", "reference", "single"]
    assert groups[5:9] == ["combination", "single", "combination", "combination"]
    assert groups[9:] == ["fixed", "fixed"]


def test_the_root_need_not_be_named_again(tmp_path):
    alone, ours = treated("root", [1.0]), treated("nog", [1.0])
    bare = Variant("nog", "nog", "", ours.seeds, 1, ("nog",))
    assert find(run_of(tmp_path, alone, bare), "nog") is bare


def test_pooling_is_known_by_its_recipe_or_its_baseline(tmp_path):
    assert is_pooling(run_of(tmp_path, recipe="clothing-gcp"))
    assert is_pooling(run_of(tmp_path, recipe="mine", baseline="avg"))
    assert not is_pooling(run_of(tmp_path, recipe="cifar10-dbn", baseline="bn"))


def test_how_often_the_optimal_rate_was_used_and_how_small_it_is():
    row = {"step": 1, "method": "optimal_learning_rate", "lr": 0.1}
    rows = [
        {**row, "eta": 0.01, "used": True},
        {**row, "eta": None, "used": False},
        {**row, "eta": None, "used": False},
        {**row, "eta": 0.04, "used": True},
        {"step": 1, "method": "nearest_orthogonal_gradient"},
    ]
    seed = seed_run(0, methods=rows)
    assert share_used(seed) == 0.5
    # A count of all steps tells more than the steps that were recorded.
    rows[3]["used_share"] = 0.1
    assert share_used(seed_run(0, methods=rows)) == 0.1
    assert rate_ratio(rows[3]) == pytest.approx(0.4)
    assert math.isnan(rate_ratio(rows[1]))
    assert math.isnan(rate_ratio({**row, "eta": 0.05, "used": False}))
    assert math.isnan(share_used(seed_run(0)))
