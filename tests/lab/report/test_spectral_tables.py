"""Numbers of a spectral run's tables against a computation by hand from its files."""

import csv
import io
import json
import math

import pytest

from lab.report.synthetic_spectral import TITLES, treated
from orthotrain.lab.report.load import Run, load_run
from orthotrain.lab.report.spectral.published import PUBLISHED_CONDITIONS, WHITENING
from orthotrain.lab.report.spectral.published_tables import published_tables
from orthotrain.lab.report.spectral.tables import (
    comparisons_table,
    conditioning_table,
    costs_table,
    rates_table,
    results_table,
    seeds_table,
    short,
)


def read(table):
    return list(csv.DictReader(io.StringIO(table.csv())))


def results_of(folder, variant):
    return [
        json.loads((folder / f"variants/{variant}/seed-{seed}/result.json").read_text())
        for seed in (0, 1, 2)
    ]


def records_of(folder, variant, seed, what="covariance"):
    file = folder / f"variants/{variant}/seed-{seed}/metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row for row in rows if row["kind"] == "condition" and row["what"] == what]


def by_hand(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def row_of(rows, title):
    return next(row for row in rows if row["variant"] == title)


@pytest.fixture(scope="module")
def run(spectral_run):
    return load_run(spectral_run)


def test_errors_and_differences_equal_a_computation_by_hand(run, spectral_run):
    row = row_of(read(results_table(run)), "ZCA + NOG")
    ours, root = results_of(spectral_run, "nog"), results_of(spectral_run, "zca")
    errors = [100 * (1 - r["test_accuracy"]) for r in ours]
    differences = [
        100 * (b["test_accuracy"] - a["test_accuracy"]) for a, b in zip(ours, root, strict=True)
    ]
    for key, values in (
        ("test_error_percent", errors),
        ("validation_error_percent", [100 * (1 - r["validation_accuracy"]) for r in ours]),
        ("difference_to_root_points", differences),
        ("weight_norm", [r["weight_norm"] for r in ours]),
        ("step_ms_final", [r["step_ms_final"] for r in ours]),
    ):
        mean, std = by_hand(values)
        assert float(row[key]) == pytest.approx(mean, rel=1e-9)
        assert float(row[f"{key}_std"]) == pytest.approx(std, rel=1e-6, abs=1e-12)
    assert row_of(read(results_table(run)), "ZCA alone")["difference_to_root_points"] == ""


def test_the_page_shows_the_interval_beside_the_difference(run):
    shown = next(r for r in results_table(run).rows if r[0].shown == "ZCA + NOG")[3].shown
    difference, _, rest = shown.partition(" ± ")
    std, _, ends = rest.partition(" (")
    margin = 4.303 * float(std) / math.sqrt(3)
    low, _, high = ends.rstrip(")").partition(" to ")
    assert float(low) == pytest.approx(float(difference) - margin, abs=0.02)
    assert float(high) == pytest.approx(float(difference) + margin, abs=0.02)


@pytest.mark.parametrize("key", ["condition_range", "condition_ridge", "largest", "ridge"])
def test_conditions_equal_a_computation_by_hand(run, spectral_run, key):
    row = row_of(read(conditioning_table(run)), "ZCA + NOG + OW")
    logs = []
    for seed in (0, 1, 2):
        records = records_of(spectral_run, "nog-ow", seed)
        last = records[-math.ceil(len(records) / 10) :]
        logs.append(sum(math.log10(r[key]) for r in last) / len(last))
    mean, std = by_hand(logs)
    assert float(row[f"log10_{key}"]) == pytest.approx(mean)
    assert float(row[f"log10_{key}_std"]) == pytest.approx(std, abs=1e-9)
    assert float(row["numerical_rank"]) == 27


def test_infinite_conditions_are_counted(run, tmp_path):
    some = treated("nog", [1, 1], title="some", condition_float64=[1e16, None])
    all_of = treated("olr", [1], title="all", condition_float64=[None])
    table = conditioning_table(Run(tmp_path, "r", {}, None, (some, all_of), ()))
    assert table.rows[0][4].shown == "1.0e16 (infinite in 50 %)"
    assert table.rows[1][4].shown == "infinite"
    assert read(table)[1]["log10_condition_float64"] == ""


def test_shares_are_percentages_and_what_was_not_timed_is_empty(run, spectral_run):
    rows = read(costs_table(run))
    roots = [100 * r["shares"]["root"] for r in results_of(spectral_run, "nog")]
    row = row_of(rows, "ZCA + NOG")
    assert float(row["root_percent"]) == pytest.approx(by_hand(roots)[0])
    assert float(row["nearest_orthogonal_gradient_percent"]) == pytest.approx(1.1)
    assert row["optimal_learning_rate_percent"] == ""
    assert row_of(rows, "BatchNorm")["root_percent"] == ""


def test_every_comparison_of_the_findings_is_in_the_table(run):
    rows = read(comparisons_table(run))
    pairs = {(row["variant"], row["against"]) for row in rows}
    assert ("ZCA + NOG", "ZCA alone") in pairs
    assert ("ZCA + NOG, norm fixed", "ZCA alone, norm fixed") in pairs
    assert ("ZCA + NOG + OW", "ZCA + OW") in pairs
    assert ("ZCA + NOG, norm fixed", "ZCA alone") not in pairs
    row = next(
        r
        for r in rows
        if (r["variant"], r["against"], r["measure"])
        == ("ZCA + NOG", "ZCA alone", "condition with the ridge")
    )
    assert float(row["difference_or_ratio"]) == pytest.approx(
        float(row["value"]) / float(row["other_value"])
    )
    assert float(row["low"]) < float(row["difference_or_ratio"]) < float(row["high"])
    assert row["seeds"] == "3"
    assert row["verdict"] == "higher"


def test_seeds_hold_the_recorded_numbers(run, spectral_run):
    rows = [r for r in read(seeds_table(run)) if r["variant"] == "ZCA + OLR"]
    for row, result in zip(rows, results_of(spectral_run, "olr"), strict=True):
        assert float(row["test_accuracy"]) == result["test_accuracy"]
        assert float(row["weight_norm"]) == result["weight_norm"]
        assert float(row["share_root"]) == result["shares"]["root"]
        assert row["numerical_rank"] == "27"


def test_published_numbers_stand_beside_the_same_method_only(run):
    whitening, conditions = published_tables(run)
    ours = {r["method"]: r["this_run_validation_error_percent"] for r in read(whitening)}
    assert [method for method, value in ours.items() if value] == ["Newton-Schulz"]
    mean = float(row_of(read(results_table(run)), TITLES["ns"])["validation_error_percent"])
    assert float(ours["Newton-Schulz"]) == pytest.approx(mean)
    rows = {row["method"]: row for row in read(conditions)}
    assert [float(rows["NOG"][f"step_{s}"]) for s in (1000, 20000, 60000, 130000)] == [
        3e6, 1e7, 5.9e5, 2.2e5,
    ]  # fmt: skip
    assert all(row["this_run_log10_condition_range"] for row in rows.values())


def test_published_numbers_are_those_of_the_list():
    # Sums taken from the published lists themselves, so that no digit is mistyped.
    errors = [[float(cell.split(" ")[0]) for cell in row.cells] for row in WHITENING]
    assert [round(sum(column), 2) for column in zip(*errors, strict=True)] == [
        27.19, 127.71, 119.49, 18.13,
    ]  # fmt: skip
    logs = sum(math.log10(value) for known in PUBLISHED_CONDITIONS for value in known.values)
    assert len(PUBLISHED_CONDITIONS) == 11
    assert logs == pytest.approx(208.9906, abs=1e-3)


def test_pooling_has_its_own_published_tables(pooling_run):
    pooled = load_run(pooling_run)
    tables = published_tables(pooled)
    assert [table.name for table in tables] == ["published", "published-fine"]
    ours = {r["method"]: r["this_run_test_error_percent"] for r in read(tables[0])}
    assert [method for method, value in ours.items() if value] == [
        "no covariance pooling",
        "iSQRT (Newton-Schulz)",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (6.8e4, "6.8e4"), (680.4, "680"), (5.312, "5.31"), (3.5e16, "3.5e16"), (4e-5, "4.0e-5"),
        (0.0, "0"), (math.inf, "infinite"), (9999.0, "9999"),
    ],
)  # fmt: skip
def test_short_numbers(value, shown):
    assert short(value) == shown


def test_the_rates_are_those_of_the_records(run, spectral_run):
    rows = read(rates_table(run))
    assert [row["variant"] for row in rows] == [
        title for name, title in TITLES.items() if "olr" in name.split("-")
    ]
    shares = []
    for seed in (0, 1, 2):
        file = spectral_run / f"variants/olr/seed-{seed}/metrics.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        mine = [r for r in records if r.get("method") == "optimal_learning_rate"]
        shares.append(100 * sum(r["used"] is True for r in mine) / len(mine))
    mean, std = by_hand(shares)
    row = row_of(rows, "ZCA + OLR")
    assert float(row["used_percent"]) == pytest.approx(mean)
    assert float(row["used_percent_std"]) == pytest.approx(std)
    assert float(row["log10_rate_ratio"]) < 0
