"""The page of a classifier with branches: what it says must follow from the numbers."""

import pytest

from lab.experiments.lowrank.synthetic import PLANS, branched_run
from lab.report.pages import answers_of, page_of, plots_of, read, tables_of, undrawn
from orthotrain.lab.experiments.branches.columns import cut_alone
from orthotrain.lab.experiments.branches.pays import says
from orthotrain.lab.experiments.lowrank.columns import GOAL
from orthotrain.lab.report import closing_table
from orthotrain.lab.report.load import load_run
from orthotrain.lab.report.style import LIGHT, styled


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return branched_run(tmp_path_factory.mktemp("branched") / "run")


def test_sentences_are_about_accuracy(finished):
    first, repaired, taught = says(load_run(finished), GOAL)
    assert first.startswith("Where the dense run exists anyway, a branch from it pays at 50 %")
    assert "(1.00 points better than narrow for 30 % of its compute)" in first
    assert first.endswith("it does not pay (2.3 times the compute of narrow).")
    assert repaired == (
        "At 50 % both repairs recover 60 % of the 1.00 points that frozen bases lose against "
        "trained ones."
    )
    assert "at 50 % it is 0.50 points better than the branch for 5.5 times its" in taught


def test_claims_know_that_more_accuracy_is_better(finished):
    found = answers_of(load_run(finished))
    assert found["Is a branch of 50 % better than a narrow network from scratch?"].tone == "good"
    assert (
        found["Is a branch better than a narrow network with the same teacher?"].verdict == "worse"
    )
    assert "Which variants are more accurate than dense?" in found


def test_the_cut_alone_is_the_end_less_what_training_on_gained(finished):
    branch = load_run(finished).variant("branch-50")
    accuracy, *_, cut = PLANS["branch-50"]
    expected = 100 * (accuracy + cut - (accuracy - 0.01))
    ended = cut_alone(branch, GOAL).seeds[0]
    assert 100 * ended.final("test_accuracy") == pytest.approx(expected)
    row = next(
        r for r in read(tables_of(load_run(finished))["cuts"]) if r["variant"] == "branch-50"
    )
    assert float(row["cut_accuracy"]) == pytest.approx(90.0)
    assert float(row["cut_accuracy_before"]) == pytest.approx(94.0)


def test_the_first_figure_is_over_size_and_compute_with_far_ones_compressed_below(finished):
    plot = plots_of(load_run(finished))["pays"]
    with styled(LIGHT):
        figure = plot.draw(LIGHT)
    axes = figure.axes[0]
    assert len(figure.axes) == 3
    assert axes.get_ylabel() == "Test accuracy (%)"
    at = axes.transData.transform([(0, y) for y in (80.0, 93.0, 95.0)])[:, 1]
    assert at[2] - at[1] > at[1] - at[0]
    heading = closing_table(finished).splitlines()[0]
    assert "compute %" in heading
    assert max(map(len, closing_table(finished).splitlines())) <= 100


def test_a_run_from_before_operations_were_counted_still_has_its_page(tmp_path, monkeypatch):
    undrawn(monkeypatch)
    folder = branched_run(tmp_path / "run", names=("dense", "oialr-paper"), counted=False)
    page_of(folder)
    row = read(tables_of(load_run(folder))["results"])[0]
    assert "compute_percent_of_dense" not in row
    assert says(load_run(folder), GOAL) == []
    assert "compute %" not in closing_table(folder)
