"""End values and which variant is compared with which, against values worked out by hand."""

import math

import pytest

from lab.experiments.spectral.synthetic import seed_run, treated
from orthotrain.lab.experiments.spectral.columns import (
    LARGEST,
    RANK,
    RIDGED,
    SENSES,
    comparable,
    direct_parts,
    find,
    group_of,
    is_pooling,
    look,
    reference_of,
    shown_in,
)
from orthotrain.lab.experiments.watched import OLR, rate_ratio, share_used
from orthotrain.lab.report.load import Run, Variant, load_run
from orthotrain.lab.report.style import DARK, LIGHT

RANGE, _, FLOAT32, FLOAT64 = SENSES


def run_of(tmp_path, *variants, **info):
    return Run(tmp_path, "run", info, None, variants, ())


def test_the_end_is_the_geometric_mean_of_the_last_tenth_of_records():
    values = [1.0] * 18 + [1e2, 1e6]
    assert RANGE.read(seed_run(0, condition_range=values)) == pytest.approx(1e4)
    # Eleven records: a tenth rounded up are two.
    assert RANGE.read(seed_run(0, condition_range=[1.0] * 9 + [10, 1e5])) == pytest.approx(1e3)
    assert RANGE.read(seed_run(0, condition_range=[7.0])) == pytest.approx(7.0)
    assert math.isnan(RANGE.read(seed_run(0)))


def test_null_is_infinite_in_naive_senses_only_and_the_majority_decides():
    start = [1.0] * 27
    few = seed_run(0, condition_float64=[*start, 1e16, None, 1e18])
    assert FLOAT64.read(few) == pytest.approx(1e17)
    assert math.isinf(FLOAT64.read(seed_run(0, condition_float64=[*start, 1e16, None, None])))
    assert math.isnan(RIDGED.read(seed_run(0, condition_ridge=[None])))


def test_null_is_no_number_where_the_matrix_had_none():
    broken = seed_run(0, condition_float32=[None], rank=[None])
    assert math.isnan(FLOAT32.read(broken))
    untold = seed_run(0, condition_float32=[None], rank=[20], route=["gram"])
    assert math.isnan(FLOAT32.read(untold))


def test_a_weight_is_not_taken_for_a_covariance():
    seed = seed_run(0, condition_range=[5.0], what="weight")
    assert math.isnan(RANGE.read(seed))


def test_rank_and_size_at_the_end():
    variant = treated("nog", [1.0], rank=[20], size=[64])
    assert RANK.aside(variant) == "of 64"
    assert RANK.read(seed_run(0, rank=[20] * 18 + [27, 26])) == 26.5


def test_the_ridge_of_a_batch_norm_is_not_compared_with_that_of_the_layer():
    layer = treated("root", [1, 1], condition_ridge=[10.0, 10.0], largest=[1.0, 1.0])
    batch_norm = treated("", [1, 1], condition_ridge=[1e5, 1e5], largest=[1.0, 1.0])
    assert not comparable(batch_norm, layer, RIDGED)
    assert comparable(batch_norm, layer, LARGEST)
    assert comparable(layer, layer, RIDGED)


def test_who_is_compared_with_which(tmp_path):
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
    row = {"step": 1, "method": OLR, "lr": 0.1}
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


def test_every_variant_of_a_figure_looks_different(spectral_run):
    run = load_run(spectral_run)
    for theme in (LIGHT, DARK):
        looks = look(run, theme)
        for group in ("single", "combination", "fixed"):
            shown = [looks[v.name] for v in shown_in(run, group)]
            assert len({(one.color, one.line) for one in shown}) == len(shown)
            assert len({one.label for one in shown}) == len(shown)
        for treatment in ("nog", "olr"):
            shown = [looks[v.name] for v in run.variants if treatment in v.treatments]
            assert len({(one.color, one.line) for one in shown}) == len(shown)
    assert [v.name for v in shown_in(run, "fixed")] == [
        "zca", "nog", "olr", "zca-fixed", "nog-fixed", "olr-fixed",
        "nog-olr-fixed",
    ]  # fmt: skip


def test_an_unknown_treatment_still_has_a_look(tmp_path):
    odd = treated("mystery", [1.0], title="odd")
    run = Run(tmp_path, "r", {}, None, (odd,), ())
    assert look(run, LIGHT)["mystery"].label == "MYSTERY"
