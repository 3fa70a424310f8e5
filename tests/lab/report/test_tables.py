"""Numbers of the tables against a computation by hand from the files."""

import csv
import io
import json
import math

import pytest

from orthotrain.lab.report.load import load_run
from orthotrain.lab.report.tables import (
    Spread,
    environment_table,
    ranks_table,
    results_table,
    seeds_table,
    settings_table,
    short_count,
)
from orthotrain.lab.report.tables import costs_table as costs


def results_of(folder, variant):
    return [
        json.loads((folder / f"variants/{variant}/seed-{seed}/result.json").read_text())
        for seed in (0, 1, 2)
    ]


def read(table):
    return list(csv.DictReader(io.StringIO(table.csv())))


def by_hand(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


@pytest.mark.parametrize("variant", ["dense", "oialr-paper", "oialr-tuned", "narrow"])
def test_results_equal_a_computation_by_hand(finished_run, variant):
    run = load_run(finished_run)
    row = {v.name: r for v, r in zip(run.variants, read(results_table(run)), strict=True)}[variant]
    results = results_of(finished_run, variant)
    dense = results_of(finished_run, "dense")[0]["stored"]
    for key, values in {
        "test_accuracy_percent": [100 * r["test_accuracy"] for r in results],
        "validation_accuracy_percent": [100 * r["validation_accuracy"] for r in results],
        "trainable_percent_of_dense": [100 * r["trainable"] / dense for r in results],
        "stored_percent_of_dense": [100 * r["stored"] / dense for r in results],
        "stored_folded_percent_of_dense": [100 * r["stored_folded"] / dense for r in results],
    }.items():
        mean, std = by_hand(values)
        assert float(row[key]) == pytest.approx(mean, rel=1e-12)
        assert float(row[f"{key}_std"]) == pytest.approx(std, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("variant", ["dense", "oialr-tuned"])
def test_costs_equal_a_computation_by_hand(finished_run, variant):
    run = load_run(finished_run)
    row = {v.name: r for v, r in zip(run.variants, read(costs(run)), strict=True)}[variant]
    results = results_of(finished_run, variant)
    for key, source, scale in (
        ("step_ms_dense_phase", "step_ms_dense_phase", 1),
        ("step_ms_final", "step_ms_final", 1),
        ("seconds", "seconds", 1),
        ("training_mib", "training_bytes", 1 / 1024**2),
    ):
        mean, std = by_hand([r[source] * scale for r in results])
        assert float(row[key]) == pytest.approx(mean, rel=1e-12)
        assert float(row[f"{key}_std"]) == pytest.approx(std, rel=1e-9, abs=1e-9)
    switch = results[0]["switch_step"]
    assert row["switch_step"] == ("" if switch is None else str(float(switch)))


def test_the_page_shows_rounded_what_the_csv_holds(finished_run):
    run = load_run(finished_run)
    mean, std = by_hand([100 * r["test_accuracy"] for r in results_of(finished_run, "narrow")])
    assert results_table(run).rows[3][1].shown == f"{mean:.2f} ± {std:.2f}"


def test_a_single_seed_has_a_mean_and_no_spread(write_run):
    table = results_table(load_run(write_run(variants=["dense"], seeds=[5])))
    assert "±" not in table.rows[0][1].shown
    row = read(table)[0]
    assert row["test_accuracy_percent"] != ""
    assert row["test_accuracy_percent_std"] == ""
    assert row["seeds"] == "1 of 1"


def test_an_unfinished_variant_keeps_its_row_without_numbers(write_run):
    folder = write_run(variants=["dense", "narrow"])
    for seed in (0, 1, 2):
        (folder / f"variants/narrow/seed-{seed}/result.json").unlink()
    row = read(results_table(load_run(folder)))[1]
    assert row["variant"] == "narrow dense"
    assert row["test_accuracy_percent"] == ""
    assert row["seeds"] == "0 of 3"


def test_seeds_hold_the_recorded_numbers_exactly(finished_run):
    rows = read(seeds_table(load_run(finished_run)))
    assert len(rows) == 12
    results = results_of(finished_run, "oialr-paper")
    for row, result in zip(rows[3:6], results, strict=True):
        assert int(row["seed"]) == result["seed"]
        assert float(row["test_accuracy"]) == result["test_accuracy"]
        assert float(row["step_ms_final"]) == result["step_ms_final"]
        assert int(row["stored"]) == result["stored"]
        assert row["peak_rss_bytes"] == ""


def test_final_ranks_equal_the_last_records(finished_run):
    rows = read(ranks_table(load_run(finished_run)))
    assert len(rows) == 24
    for row in (rows[0], rows[-1]):
        last = []
        for seed in (0, 1, 2):
            file = finished_run / f"variants/oialr-tuned/seed-{seed}/metrics.jsonl"
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            mine = [x for x in lines if x["kind"] == "rank" and x["layer"] == row["layer"]]
            last.append(max(mine, key=lambda x: x["step"])["rank"])
        mean, std = by_hand(last)
        assert float(row["oialr-tuned_rank"]) == pytest.approx(mean)
        assert float(row["oialr-tuned_rank_std"]) == pytest.approx(std)
        assert float(row["oialr-tuned_rank_percent"]) == pytest.approx(100 * mean / 96)
        assert row["full_rank"] == "96"


def test_settings_are_flat_and_differences_between_seeds_are_shown(write_run):
    folder = write_run(variants=["oialr-tuned"])
    file = folder / "variants/oialr-tuned/seed-1/result.json"
    result = json.loads(file.read_text())
    result["settings"]["lr"] = 0.5
    file.write_text(json.dumps(result))
    settings = {
        row["setting"]: row["oialr-tuned"] for row in read(settings_table(load_run(folder)))
    }
    assert settings == {"lr": "0.001 | 0.5", "adaptive.rank_rtol": "0.25"}


def test_the_environment_is_all_of_run_json_but_its_structure(finished_run):
    shown = {row["what"]: row["value"] for row in read(environment_table(load_run(finished_run)))}
    assert shown["torch"] == "2.13.0"
    assert shown["cpu_count"] == "2"
    assert "variants" not in shown


def test_a_spread_leaves_out_what_is_not_finite():
    spread = Spread.of([1.0, math.nan, 3.0, math.inf])
    assert spread.values == (1.0, 3.0)
    assert spread.mean == 2.0
    assert spread.std == pytest.approx(math.sqrt(2))
    assert not Spread.of([math.nan])


@pytest.mark.parametrize(
    ("count", "shown"), [(842, "842"), (73_123, "73.1 k"), (1_240_000, "1.24 M"), (3e9, "3 G")]
)
def test_counts_are_short(count, shown):
    assert short_count(count) == shown
