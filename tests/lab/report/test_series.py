"""Curves and grids against values worked out by hand."""

import math

import numpy as np

from orthotrain.lab.report.load import SeedRun, Variant
from orthotrain.lab.report.published import PUBLISHED_EPOCHS, PUBLISHED_STABILITY
from orthotrain.lab.report.series import (
    curve,
    held_curve,
    rank_grid,
    stability_curve,
    stability_grid,
)

KINDS = ("step", "eval", "size", "rank", "stability", "event")


def variant(*seeds):
    runs = tuple(
        SeedRun(index, {kind: rows.get(kind, []) for kind in KINDS}, None)
        for index, rows in enumerate(seeds)
    )
    return Variant("v", "v", "", runs, len(runs))


def test_a_curve_is_mean_lowest_and_highest_over_seeds():
    first = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0}]
    second = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}]
    line = curve(variant({"step": first}, {"step": second}), "step", "loss")
    assert line is not None
    assert line.x.tolist() == [1, 2]
    assert line.mean.tolist() == [2.5, 2.0]
    assert line.low.tolist() == [1.0, 2.0]
    assert line.high.tolist() == [4.0, 2.0]


def test_bins_take_the_median_of_each_seed_first():
    rows = [{"step": s, "loss": v} for s, v in ((0, 1.0), (1, 100.0), (2, 2.0), (4, 5.0), (6, 5.0))]
    line = curve(variant({"step": rows}), "step", "loss", bins=2)
    assert line is not None
    assert line.mean.tolist() == [2.0, 5.0, 5.0]
    assert line.x.tolist() == [1.0, 4.0, 6.0]


def test_only_the_asked_split_is_drawn():
    rows = [
        {"step": 1, "split": "validation", "accuracy": 0.5},
        {"step": 2, "split": "train", "accuracy": 0.9},
    ]
    line = curve(variant({"eval": rows}), "eval", "accuracy", split="validation")
    assert line is not None
    assert line.mean.tolist() == [0.5]


def test_nothing_recorded_gives_no_curve_and_no_grid():
    empty = variant({}, {"step": [{"step": 1, "loss": None}]})
    assert curve(empty, "step", "loss") is None
    assert rank_grid(empty) is None
    assert stability_grid(empty, "stability") is None
    assert stability_curve(empty) is None


def rank(step, value, form, layer="a"):
    return {"step": step, "layer": layer, "rank": value, "full_rank": 8, "form": form}


def test_a_rank_holds_until_the_next_change_and_dense_is_empty():
    ranks = [rank(0, 8, "dense"), rank(2, 8, "materialized"), rank(4, 2, "factored")]
    grid = rank_grid(variant({"rank": ranks}), columns=5)
    assert grid is not None
    assert grid.x.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(grid.values, [[math.nan, math.nan, 1.0, 1.0, 0.25]])


def test_a_dense_seed_does_not_count_in_the_mean_rank():
    low, dense = [rank(0, 4, "factored"), rank(1, 2, "factored")], [rank(0, 8, "dense")]
    steps = [{"step": 1, "loss": 1.0}]
    both = variant({"rank": low, "step": steps}, {"rank": dense, "step": steps})
    grid = rank_grid(both, columns=2)
    assert grid is not None
    np.testing.assert_array_equal(grid.values, [[0.5, 0.25]])


def test_a_killed_seed_ends_where_its_record_ends():
    long = {"rank": [rank(0, 4, "factored"), rank(4, 4, "factored")]}
    short = {"rank": [rank(0, 8, "factored")], "step": [{"step": 2, "loss": 1.0}]}
    grid = rank_grid(variant(long, short), columns=5)
    assert grid is not None
    np.testing.assert_array_equal(grid.values, [[0.75, 0.75, 0.75, 0.5, 0.5]])


def size(step, a, b=0):
    return {"step": step, "a": a, "b": b}


def test_sizes_that_change_at_different_steps_have_a_mean_at_each():
    first = {"size": [size(0, 8, 1), size(4, 4, 1), size(9, 4, 1)]}
    second = {"size": [size(0, 8, 1), size(6, 2, 1), size(9, 2, 1)]}
    line = held_curve(variant(first, second), ["a", "b"])
    assert line is not None
    assert line.x.tolist() == [0, 4, 6, 9]
    assert line.mean.tolist() == [9, 7, 4, 4]
    assert line.low.tolist() == [9, 5, 3, 3]
    assert line.high.tolist() == [9, 9, 5, 5]


def test_a_killed_seed_holds_no_size_past_its_record():
    line = held_curve(variant({"size": [size(0, 8), size(9, 4)]}, {"size": [size(0, 2)]}), ["a"])
    assert line is not None
    assert line.mean.tolist() == [5, 4]


def test_a_size_holds_to_the_last_step_of_any_record():
    rows = {"size": [size(0, 8)], "step": [{"step": 7, "loss": 1.0}]}
    line = held_curve(variant(rows), ["a"])
    assert line is not None
    assert line.x.tolist() == [0, 7]
    assert line.mean.tolist() == [8, 8]


def test_a_size_row_without_one_of_the_fields_is_left_out():
    assert held_curve(variant({"size": [{"step": 0, "a": 1}]}), ["a", "b"]) is None
    assert held_curve(variant({}), ["a"]) is None


def stable(epoch, layer, value):
    return {"step": epoch, "epoch": epoch, "layer": layer, "stability": value, "mixing": None}


def test_stability_is_the_mean_over_seeds_per_layer_and_over_layers_per_seed():
    first = [stable(1, "a", 0.2), stable(1, "b", 0.4), stable(2, "a", 0.8)]
    second = [stable(1, "a", 0.4), stable(1, "b", 0.8)]
    both = variant({"stability": first}, {"stability": second})
    grid, line = stability_grid(both, "stability"), stability_curve(both)
    assert grid is not None
    assert line is not None
    assert grid.layers == ("a", "b")
    np.testing.assert_allclose(grid.values, [[0.3, 0.8], [0.6, math.nan]])
    np.testing.assert_allclose(line.mean, [0.45, 0.8])
    np.testing.assert_allclose(line.low, [0.3, 0.8])
    np.testing.assert_allclose(line.high, [0.6, 0.8])
    assert stability_grid(both, "mixing") is None


def test_published_curves_are_the_twenty_read_from_the_figure():
    assert PUBLISHED_EPOCHS[0] == 5
    assert PUBLISHED_EPOCHS[-1] == 100
    sums = {known.name: round(sum(known.values), 3) for known in PUBLISHED_STABILITY}
    # Sums of the published values, added by hand from their list.
    assert sums == {"ViT-B/16": 18.389, "ResNet-RS101": 19.172}
    assert all(len(known.values) == len(PUBLISHED_EPOCHS) for known in PUBLISHED_STABILITY)
