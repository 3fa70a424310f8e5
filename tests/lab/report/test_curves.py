"""Curves and grids against values worked out by hand."""

import math

import numpy as np

from orthotrain.lab.report.curves import Series, curve, grid
from orthotrain.lab.report.load import SeedRun, Variant
from orthotrain.lab.report.rows import field, number

LOSS = Series("step", field("loss"))
STABILITY = Series("stability", field("stability"), x="epoch")
RANK = Series(
    "rank",
    lambda row: math.nan if row["form"] == "dense" else number(row, "rank") / row["full_rank"],
)
SIZE = Series("size", lambda row: number(row, "a") + number(row, "b"))


def variant(*seeds):
    runs = tuple(SeedRun(index, rows, None) for index, rows in enumerate(seeds))
    return Variant("v", "v", "", runs, len(runs))


def test_a_curve_is_mean_lowest_and_highest_over_seeds():
    first = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0}]
    second = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}]
    line = curve(variant({"step": first}, {"step": second}), LOSS)
    assert line is not None
    assert line.x.tolist() == [1, 2]
    assert line.mean.tolist() == [2.5, 2.0]
    assert line.low.tolist() == [1.0, 2.0]
    assert line.high.tolist() == [4.0, 2.0]


def test_bins_take_the_median_of_each_seed_first():
    rows = [{"step": s, "loss": v} for s, v in ((0, 1.0), (1, 100.0), (2, 2.0), (4, 5.0), (6, 5.0))]
    line = curve(variant({"step": rows}), LOSS, bins=2)
    assert line is not None
    assert line.mean.tolist() == [2.0, 5.0]
    assert line.x.tolist() == [1.0, 5.0]


def test_only_the_asked_split_is_drawn():
    rows = [
        {"step": 1, "split": "validation", "accuracy": 0.5},
        {"step": 2, "split": "train", "accuracy": 0.9},
    ]
    line = curve(variant({"eval": rows}), Series("eval", field("accuracy", split="validation")))
    assert line is not None
    assert line.mean.tolist() == [0.5]


def test_nothing_recorded_gives_no_curve_and_no_grid():
    empty = variant({}, {"step": [{"step": 1, "loss": None}]})
    assert curve(empty, LOSS) is None
    assert grid(empty, RANK, columns=5) is None
    assert grid(empty, STABILITY) is None
    assert curve(empty, SIZE, reduce="hold") is None


def rank(step, value, form, layer="a"):
    return {"step": step, "layer": layer, "rank": value, "full_rank": 8, "form": form}


def test_a_rank_holds_until_the_next_change_and_dense_is_empty():
    ranks = [rank(0, 8, "dense"), rank(2, 8, "materialized"), rank(4, 2, "factored")]
    found = grid(variant({"rank": ranks}), RANK, columns=5)
    assert found is not None
    assert found.x.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found.values, [[math.nan, math.nan, 1.0, 1.0, 0.25]])


def test_a_dense_seed_does_not_count_in_the_mean_rank():
    low, dense = [rank(0, 4, "factored"), rank(1, 2, "factored")], [rank(0, 8, "dense")]
    steps = [{"step": 1, "loss": 1.0}]
    both = variant({"rank": low, "step": steps}, {"rank": dense, "step": steps})
    found = grid(both, RANK, columns=2)
    assert found is not None
    np.testing.assert_array_equal(found.values, [[0.5, 0.25]])


def test_a_killed_seed_ends_where_its_record_ends():
    long = {"rank": [rank(0, 4, "factored"), rank(4, 4, "factored")]}
    short = {"rank": [rank(0, 8, "factored")], "step": [{"step": 2, "loss": 1.0}]}
    found = grid(variant(long, short), RANK, columns=5)
    assert found is not None
    np.testing.assert_array_equal(found.values, [[0.75, 0.75, 0.75, 0.5, 0.5]])


def size(step, a, b=0):
    return {"step": step, "a": a, "b": b}


def test_sizes_that_change_at_different_steps_have_a_mean_at_each():
    first = {"size": [size(0, 8, 1), size(4, 4, 1), size(9, 4, 1)]}
    second = {"size": [size(0, 8, 1), size(6, 2, 1), size(9, 2, 1)]}
    line = curve(variant(first, second), SIZE, reduce="hold")
    assert line is not None
    assert line.x.tolist() == [0, 4, 6, 9]
    assert line.mean.tolist() == [9, 7, 4, 4]
    assert line.low.tolist() == [9, 5, 3, 3]
    assert line.high.tolist() == [9, 9, 5, 5]


def test_a_killed_seed_holds_no_size_past_its_record():
    line = curve(
        variant({"size": [size(0, 8), size(9, 4)]}, {"size": [size(0, 2)]}), SIZE, reduce="hold"
    )
    assert line is not None
    assert line.mean.tolist() == [5, 4]


def test_a_size_holds_to_the_last_step_of_any_record():
    rows = {"size": [size(0, 8)], "step": [{"step": 7, "loss": 1.0}]}
    line = curve(variant(rows), SIZE, reduce="hold")
    assert line is not None
    assert line.x.tolist() == [0, 7]
    assert line.mean.tolist() == [8, 8]


def test_a_size_row_without_one_of_the_fields_is_left_out():
    assert curve(variant({"size": [{"step": 0, "a": 1}]}), SIZE, reduce="hold") is None


def stable(epoch, layer, value):
    return {"step": epoch, "epoch": epoch, "layer": layer, "stability": value, "mixing": None}


def test_stability_is_the_mean_over_seeds_per_layer_and_over_layers_per_seed():
    first = [stable(1, "a", 0.2), stable(1, "b", 0.4), stable(2, "a", 0.8)]
    second = [stable(1, "a", 0.4), stable(1, "b", 0.8)]
    both = variant({"stability": first}, {"stability": second})
    found, line = grid(both, STABILITY), curve(both, STABILITY, reduce="mean")
    assert found is not None
    assert line is not None
    assert found.layers == ("a", "b")
    np.testing.assert_allclose(found.values, [[0.3, 0.8], [0.6, math.nan]])
    np.testing.assert_allclose(line.mean, [0.45, 0.8])
    np.testing.assert_allclose(line.low, [0.3, 0.8])
    np.testing.assert_allclose(line.high, [0.6, 0.8])
    assert grid(both, Series("stability", field("mixing"), x="epoch")) is None


def test_a_geometric_curve_leaves_out_what_has_no_logarithm():
    first, second = (
        [{"step": 1, "loss": 1e2}, {"step": 2, "loss": -1.0}],
        [{"step": 1, "loss": 1e4}],
    )
    line = curve(variant({"step": first}, {"step": second}), LOSS, geometric=True)
    assert line is not None
    np.testing.assert_allclose([line.mean, line.low, line.high], [[1e3], [1e2], [1e4]])
