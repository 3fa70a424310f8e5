"""The page of a low-rank run: its numbers against a computation by hand from the files."""

import json
import math

import pytest

from lab.report.pages import answers_of, notes_of, read, tables_of
from orthotrain.lab.experiments.lowrank.columns import rival
from orthotrain.lab.experiments.lowrank.page import watched
from orthotrain.lab.experiments.lowrank.published import PUBLISHED_EPOCHS, PUBLISHED_STABILITY
from orthotrain.lab.experiments.sizes import dense_size
from orthotrain.lab.report import closing_table
from orthotrain.lab.report.load import load_run
from orthotrain.lab.report.ranks import factored


def results_of(folder, variant):
    return [
        json.loads((folder / f"variants/{variant}/seed-{seed}/result.json").read_text())
        for seed in (0, 1, 2)
    ]


def by_hand(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


@pytest.mark.parametrize("variant", ["dense", "oialr-paper", "oialr-tuned", "narrow"])
def test_results_equal_a_computation_by_hand(finished_run, variant):
    run = load_run(finished_run)
    row = {v.name: r for v, r in zip(run.variants, read(tables_of(run)["results"]), strict=True)}[
        variant
    ]
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
    row = {v.name: r for v, r in zip(run.variants, read(tables_of(run)["costs"]), strict=True)}[
        variant
    ]
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
    assert tables_of(run)["results"].rows[3][1].shown == f"{mean:.2f} ± {std:.2f}"


def test_a_single_seed_has_a_mean_and_no_spread(write_run):
    table = tables_of(load_run(write_run(variants=["dense"], seeds=[5])))["results"]
    assert "±" not in table.rows[0][1].shown
    row = read(table)[0]
    assert row["test_accuracy_percent"] != ""
    assert row["test_accuracy_percent_std"] == ""
    assert row["seeds"] == "1 of 1"


def test_an_unfinished_variant_keeps_its_row_without_numbers(write_run):
    folder = write_run(variants=["dense", "narrow"])
    for seed in (0, 1, 2):
        (folder / f"variants/narrow/seed-{seed}/result.json").unlink()
    row = read(tables_of(load_run(folder))["results"])[1]
    assert row["variant"] == "narrow dense"
    assert row["test_accuracy_percent"] == ""
    assert row["seeds"] == "0 of 3"


def test_seeds_hold_the_recorded_numbers_exactly(finished_run):
    rows = read(tables_of(load_run(finished_run))["seeds"])
    assert len(rows) == 12
    results = results_of(finished_run, "oialr-paper")
    for row, result in zip(rows[3:6], results, strict=True):
        assert int(row["seed"]) == result["seed"]
        assert float(row["test_accuracy"]) == result["test_accuracy"]
        assert float(row["step_ms_final"]) == result["step_ms_final"]
        assert int(row["stored"]) == result["stored"]
        assert row["peak_rss_bytes"] == ""


def test_final_ranks_equal_the_last_records(finished_run):
    rows = read(tables_of(load_run(finished_run))["ranks"])
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


def test_the_variants_are_told_apart_by_what_they_recorded(finished_run):
    run = load_run(finished_run)
    assert rival(run) is run.variants[3]
    assert [v.name for v in run.variants if factored(v)] == ["oialr-paper", "oialr-tuned"]
    assert [v.name for v in watched(run)] == ["dense", "narrow"]
    assert dense_size(run) == 450_000


def test_without_a_finished_dense_seed_sizes_refer_to_the_largest_dense_count(write_run):
    folder = write_run(variants=["dense", "oialr-tuned", "narrow"])
    for seed in (0, 1, 2):
        (folder / f"variants/dense/seed-{seed}/result.json").unlink()
    assert dense_size(load_run(folder)) == 450_000
    unfinished = write_run(name="other", variants=["oialr-tuned", "narrow"], seeds=[0])
    for file in unfinished.glob("variants/*/*/result.json"):
        file.unlink()
    assert dense_size(load_run(unfinished)) == 450_000


def change(folder, variant, **values):
    """Give the seeds of a variant these numbers, one value per seed."""
    for key, by_seed in values.items():
        for seed, value in enumerate(by_seed):
            file = folder / f"variants/{variant}/seed-{seed}/result.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        ((0.95, 0.961, 0.97), "better (OIALR, tuned)"),
        ((0.85, 0.861, 0.87), "worse (OIALR, tuned)"),
        ((0.89, 0.912, 0.919), "within the interval"),
    ],
)
def test_accuracy_is_compared_by_seed_with_dense_and_narrow(write_run, accuracy, verdict):
    folder = write_run(variants=["dense", "oialr-tuned", "narrow"])
    for other in ("dense", "narrow"):
        change(folder, other, test_accuracy=(0.89, 0.91, 0.92))
    change(folder, "oialr-tuned", test_accuracy=accuracy)
    answers = answers_of(load_run(folder))
    assert answers["Which variants are more accurate than dense?"].verdict == verdict
    beside = answers["Which low-rank networks are more accurate than narrow dense?"]
    assert beside.verdict.startswith(verdict.removesuffix(" (OIALR, tuned)"))
    assert {(p.ours.name, p.other.name) for p in beside.compared} == {("oialr-tuned", "narrow")}
    assert len(beside.compared) == 3


def test_costs_are_compared_with_dense(finished_run):
    answers = answers_of(load_run(finished_run))
    assert "OIALR, tuned" in answers["Which store less than dense?"].verdict
    assert "worse (OIALR, published)" in answers["Which store less than dense?"].verdict
    rows = read(tables_of(load_run(finished_run))["comparisons"])
    pairs = {(row["variant"], row["compared_with"]) for row in rows}
    assert ("OIALR, tuned", "narrow dense") in pairs
    assert ("narrow dense", "dense") in pairs


def test_what_a_run_lacks_and_where_the_loss_jumped_is_said(write_run):
    folder = write_run(variants=["dense", "oialr-tuned"])
    change(folder, "dense", test_accuracy=(None,))
    file = folder / "variants/oialr-tuned/seed-0/metrics.jsonl"
    jump = {"kind": "event", "step": 9, "event": "loss_jump", "layer": "up"}
    file.write_text(file.read_text() + json.dumps(jump) + "\n")
    said = notes_of(folder)
    assert "dense: no test accuracy for seed 0." in said
    assert "no narrow dense network" in said
    assert "OIALR, tuned: the loss jumped after 1 of the cuts" in said


def test_the_closing_table_is_that_of_the_page(finished_run):
    heading, dense, *_, narrow = closing_table(finished_run).splitlines()
    assert heading.split()[:4] == ["variant", "test", "%", "stored"]
    mean, std = by_hand([100 * r["test_accuracy"] for r in results_of(finished_run, "dense")])
    assert f"{mean:.2f} ± {std:.2f}" in dense
    assert narrow.startswith("narrow dense")
    assert max(map(len, (heading, dense, narrow))) <= 100


def test_published_curves_are_the_twenty_read_from_the_figure():
    assert (PUBLISHED_EPOCHS[0], PUBLISHED_EPOCHS[-1]) == (5, 100)
    sums = {name: round(sum(values), 3) for name, values in PUBLISHED_STABILITY.items()}
    # Sums of the published values, added by hand from their list.
    assert sums == {"ViT-B/16": 18.389, "ResNet-RS101": 19.172}
    assert all(len(values) == len(PUBLISHED_EPOCHS) for values in PUBLISHED_STABILITY.values())
