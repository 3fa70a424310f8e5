"""The page of a spectral run: its figures and numbers, and what is missing named."""

import json
import math
import shutil

import pytest

from lab.experiments.spectral.synthetic import TITLES, Effect, treated
from lab.report.pages import (
    answers_of,
    notes_of,
    plots_of,
    read,
    tables_of,
)
from lab.report.synthetic import write_rows
from orthotrain.lab.experiments.spectral.moments import MOMENTS
from orthotrain.lab.experiments.spectral.page import PAGE
from orthotrain.lab.experiments.spectral.published import PUBLISHED_CONDITIONS, WHITENING
from orthotrain.lab.report.load import Run, load_run
from orthotrain.lab.report.style import DARK, LIGHT, styled

FIGURES = (
    *("error", "conditions", "conditions-combined", "conditions-fixed", "published"),
    *("scale", "steps", "rates", "shares", "training"),
)
TABLES = (
    *("results", "conditioning", "moments", "costs", "published", "published-conditions"),
    *("comparisons", "rates", "seeds"),
)
SMALL = ["bn", "zca", "nog", "olr", "nog-olr"]


@pytest.fixture(scope="module")
def run(spectral_run):
    return load_run(spectral_run)


def edit(file, **changes):
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: v for key, v in content.items() if v is not ...}))


def keep_rows(folder, keep):
    for file in folder.glob("variants/*/*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write_rows(file, [row for row in rows if keep(row)])


def test_every_figure_is_drawn_and_told_in_numbers(spectral_run, write_spectral):
    # A variant of each group is enough to draw.
    names = ("bn", "zca", "nog", "olr", "nog-olr", "zca-fixed", "nog-fixed", "olr-fixed")
    run = load_run(folder := write_spectral(names=names))
    plots = plots_of(run)
    assert tuple(plots) == FIGURES
    assert tuple(tables_of(run)) == TABLES
    assert notes_of(spectral_run) == ""
    for plot in plots.values():
        with styled(LIGHT):
            plot.draw(LIGHT).draw_without_rendering()
    mean, _ = by_hand([100 * (1 - r["test_accuracy"]) for r in results_of(folder, "nog")])
    assert f"ZCA + NOG {mean:.2f} ±" in plots["error"].alt


def test_pooling_has_no_published_condition_curves(pooling_run):
    assert not {"published", "conditions-combined"} & set(plots_of(load_run(pooling_run)))
    assert "Not part of this run: SN, OL, OW, NOG + SN" in notes_of(pooling_run)


def test_a_resumed_run_records_each_thing_once(write_spectral):
    folder = write_spectral(names=["nog"], seeds=[0], steps=20)
    file = folder / "variants/nog/seed-0/metrics.jsonl"
    once = load_run(folder).variants[0].seeds[0].rows
    file.write_text(file.read_text() * 2)
    twice = load_run(folder).variants[0].seeds[0].rows
    assert twice == once
    whats = {row["what"] for row in twice["condition"] if row["step"] == 5}
    assert whats == {"covariance", "weight", "gradient", "update"}


def test_variants_that_were_not_run_are_named(write_spectral):
    folder = write_spectral(names=["zca", "nog"], seeds=[0], steps=10)
    said = notes_of(folder)
    assert "There is no variant 'bn', the baseline named in run.json" in said
    assert "Not part of this run: NS, SN, OL, OW, OLR, NOG + SN" in said
    assert "dense network" not in said


def test_without_the_root_alone_the_page_says_so(write_spectral):
    folder = write_spectral(names=["bn", "nog"], seeds=[0], steps=10)
    assert "no variant with the root alone" in notes_of(folder)


def test_records_that_are_missing_are_named(write_spectral):
    folder = write_spectral(names=SMALL, seeds=[0, 1, 2], steps=10)
    keep_rows(folder, lambda row: row.get("what") != "covariance")
    assert "ZCA + NOG: not recorded: Condition on the range, Condition with the ridge" in notes_of(
        folder
    )
    other = write_spectral(name="other", names=SMALL, steps=10)
    shutil.rmtree(other / "variants/nog/seed-2")
    edit(other / "run.json", variants=[{"name": n, "title": n} for n in SMALL])
    said = notes_of(other)
    assert "nog: run.json names no treatments" in said
    third = write_spectral(name="third", names=SMALL, steps=10)
    (third / "variants/nog/seed-2/result.json").unlink()
    assert "ZCA + NOG and ZCA alone finished 2 seeds in common of 2 and 3" in notes_of(third)


@pytest.mark.parametrize(
    ("lost", "explained"),
    [
        (("condition", None), ["conditions", "conditions-combined", "scale"]),
        (("method", "optimal_learning_rate"), ["rates"]),
        (("step", None), ["training"]),
        (("result", "shares"), ["shares"]),
        (("result", "test_accuracy"), ["error"]),
    ],
)
def test_without_a_kind_of_record_figures_draw_or_explain(write_spectral, lost, explained):
    folder = write_spectral(names=SMALL, seeds=[0], steps=10)
    kind, name = lost
    if kind == "result":
        for file in folder.glob("variants/*/*/result.json"):
            edit(file, **{name: ...})
    else:
        keep_rows(folder, lambda r: r["kind"] != kind or (name and r.get("method") != name))
    run = load_run(folder)
    plots = plots_of(run)
    assert [name for name, plot in plots.items() if plot.draw is None] == explained
    assert all(plots[name].missing for name in explained)


def test_one_record_and_killed_seeds_are_drawn(write_spectral):
    folder = write_spectral(names=SMALL, seeds=[0], steps=10)
    keep_rows(folder, lambda row: row["step"] == 0)
    (folder / "variants/nog/seed-0/result.json").unlink()
    (folder / "variants/olr/seed-0/metrics.jsonl").unlink()
    run = load_run(folder)
    for name in ("conditions", "published", "rates", "error"):
        with styled(DARK):
            plots_of(run)[name].draw(DARK).draw_without_rendering()


# --- claims ---------------------------------------------------------------------------------------


def test_turning_an_effect_around_turns_the_answers_around(write_spectral):
    better = Effect(error=-2.0, range_decades=-2.0, scale_decades=-1.0)
    worse = Effect(error=2.0, range_decades=2.0, scale_decades=1.0)
    for name, effect in (("better", better), ("worse", worse)):
        folder = write_spectral(
            name=name, names=["bn", "zca", "nog"], effects={"nog": effect}, noise=0.3
        )
        answers = answers_of(load_run(folder))
        assert answers["Does NOG reduce the test error?"].verdict == name
        assert answers["Does NOG improve the conditioning?"].verdict.startswith(name)


def test_who_is_compared_in_each_question(spectral_run):
    answers = answers_of(load_run(spectral_run))
    compared = {
        question: {(p.ours.title, p.other.title) for p in found.compared}
        for question, found in answers.items()
    }
    assert compared["Does OLR reduce the test error?"] == {("ZCA + OLR", "ZCA alone")}
    fixed = compared["Does NOG improve the conditioning where the weight norm is held fixed?"]
    assert fixed == {("ZCA + NOG, norm fixed", "ZCA alone, norm fixed")}
    combined = compared["Do combinations have less test error than their parts?"]
    assert ("ZCA + NOG + OW + OLR", "ZCA + NOG + OW") in combined
    assert ("ZCA + NOG + OW + OLR", "ZCA + NOG") not in combined
    baseline = compared["Which variants have less test error than the baseline?"]
    assert {other for _, other in baseline} == {"BatchNorm"}


# --- tables ---------------------------------------------------------------------------------------


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


def test_errors_and_differences_equal_a_computation_by_hand(run, spectral_run):
    row = row_of(read(tables_of(run)["results"]), "ZCA + NOG")
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
    assert row_of(read(tables_of(run)["results"]), "ZCA alone")["difference_to_root_points"] == ""


@pytest.mark.parametrize("key", ["condition_range", "condition_ridge", "largest", "ridge"])
def test_conditions_equal_a_computation_by_hand(run, spectral_run, key):
    row = row_of(read(tables_of(run)["conditioning"]), "ZCA + NOG + OW")
    logs = []
    for seed in (0, 1, 2):
        records = records_of(spectral_run, "nog-ow", seed)
        last = records[-math.ceil(len(records) / 10) :]
        logs.append(sum(math.log10(r[key]) for r in last) / len(last))
    mean, std = by_hand(logs)
    assert float(row[f"log10_{key}"]) == pytest.approx(mean)
    assert float(row[f"log10_{key}_std"]) == pytest.approx(std, abs=1e-9)
    assert float(row["numerical_rank"]) == 27


def test_infinite_conditions_are_counted(tmp_path):
    some = treated("nog", [1, 1], title="some", condition_float64=[1e16, None])
    all_of = treated("olr", [1], title="all", condition_float64=[None])
    table = PAGE.results[1].table(Run(tmp_path, "r", {}, None, (some, all_of), ()))
    assert (table.rows[0][4].shown, table.rows[0][4].aside) == ("1.0e16", "infinite in 50 %")
    assert table.rows[1][4].shown == "infinite"
    assert read(table)[1]["log10_condition_float64"] == ""


def test_shares_are_percentages_and_what_was_not_timed_is_empty(run, spectral_run):
    rows = read(tables_of(run)["costs"])
    roots = [100 * r["shares"]["root"] for r in results_of(spectral_run, "nog")]
    row = row_of(rows, "ZCA + NOG")
    assert float(row["root_percent"]) == pytest.approx(by_hand(roots)[0])
    assert float(row["nearest_orthogonal_gradient_percent"]) == pytest.approx(1.1)
    assert row["optimal_learning_rate_percent"] == ""
    assert row_of(rows, "BatchNorm")["root_percent"] == ""


def test_every_comparison_is_in_the_table(run):
    rows = read(tables_of(run)["comparisons"])
    pairs = {(row["variant"], row["compared_with"]) for row in rows}
    assert ("ZCA + NOG", "ZCA alone") in pairs
    assert ("ZCA + NOG, norm fixed", "ZCA alone, norm fixed") in pairs
    assert ("ZCA + NOG + OW", "ZCA + OW") in pairs
    assert ("ZCA + NOG, norm fixed", "ZCA alone") not in pairs
    row = next(
        r
        for r in rows
        if (r["variant"], r["compared_with"], r["measure"])
        == ("ZCA + NOG", "ZCA alone", "Condition with the ridge")
    )
    assert float(row["difference_or_ratio"]) == pytest.approx(
        float(row["value"]) / float(row["other_value"])
    )
    assert float(row["low"]) < float(row["difference_or_ratio"]) < float(row["high"])
    assert row["seeds"] == "3"
    assert row["verdict"] == "worse"


def test_seeds_hold_the_recorded_numbers(run, spectral_run):
    rows = [r for r in read(tables_of(run)["seeds"]) if r["variant"] == "ZCA + OLR"]
    for row, result in zip(rows, results_of(spectral_run, "olr"), strict=True):
        assert float(row["test_accuracy"]) == result["test_accuracy"]
        assert float(row["weight_norm"]) == result["weight_norm"]
        assert float(row["share_root"]) == result["shares"]["root"]
        assert row["numerical_rank"] == "27"


def test_published_numbers_stand_beside_the_same_method_only(run):
    tables = tables_of(run)
    whitening, conditions = tables["published"], tables["published-conditions"]
    ours = {r["method"]: r["this_run_validation_error_percent"] for r in read(whitening)}
    assert [method for method, value in ours.items() if value] == ["Newton-Schulz"]
    mean = float(row_of(read(tables_of(run)["results"]), TITLES["ns"])["validation_error_percent"])
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
    tables = tables_of(load_run(pooling_run))
    assert "published-fine" in tables
    assert "published-conditions" not in tables
    ours = {r["method"]: r["this_run_test_error_percent"] for r in read(tables["published"])}
    assert [method for method, value in ours.items() if value] == [
        "no covariance pooling",
        "iSQRT (Newton-Schulz)",
    ]


def test_the_rates_are_those_of_the_records(run, spectral_run):
    rows = read(tables_of(run)["rates"])
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


def test_five_moments_are_read_where_they_lie(run):
    """Against the lines of one seed, averaged by hand."""
    tables = {table.name: table for table in (one.table(run) for one in PAGE.results)}
    table = tables["moments"]
    shares = [f"{100 * share:.0f}" for share in MOMENTS]
    assert [row[1].shown for row in table.rows] == shares * len(run.variants)
    zca = next(v for v in run.variants if v.name == "zca")
    rows = [row for row in zca.finished[0].of_kind("condition") if row["what"] == "covariance"]
    last = rows[-1]["step"]
    near = [r["condition_ridge"] for r in rows if abs(r["step"] - 0.45 * last) <= 0.025 * last]
    assert 0 < len(near) < len(rows) / 5
    place = table.keys.index("log10_condition_ridge")
    found = next(
        r[place].spread for r in table.rows if (r[0].shown, r[1].shown) == ("ZCA alone", "45")
    )
    assert found.values[0] == pytest.approx(sum(map(math.log10, near)) / len(near))
    assert all(row[-1].spread.mean == 27 for row in table.rows)
