"""The page of the language experiment: what it says must follow from the numbers."""

import math
import shutil

import pytest

from lab.experiments.language.synthetic import (
    DEMO,
    PLANS,
    change_result,
    language_run,
    unfinish,
)
from lab.report.pages import answers_of, notes_of, page_of, plots_of, read, tables_of, undrawn
from lab.report.synthetic import write_rows
from orthotrain.lab.experiments.branches.columns import cut_alone
from orthotrain.lab.experiments.branches.kinds import Kind, kind_of
from orthotrain.lab.experiments.branches.pays import rivals, says
from orthotrain.lab.experiments.language.columns import BITS
from orthotrain.lab.report import closing_table
from orthotrain.lab.report.load import Variant, load_run
from orthotrain.lab.report.style import LIGHT, styled
from processes import run_python


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return language_run(tmp_path_factory.mktemp("language") / "run")


# --- kinds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dense", Kind("dense")),
        ("branch-50-20", Kind("branch", 50, 20)),
        ("branch-50-20-alone", Kind("branch-alone", 50, 20)),
        ("half-30", Kind("half", 30)),
        ("narrow-75", Kind("narrow", 75)),
        ("narrow-50-teacher-short", Kind("narrow-teacher-short", 50)),
        ("frozen-50-plain", Kind("frozen-plain", 50)),
        ("oialr-paper", Kind("oialr-paper")),
        ("branch-my-own", Kind("branch-my-own")),
    ],
)
def test_a_name_says_what_a_variant_is(name, kind):
    assert kind_of(Variant(name, name, "", (), 0)) == kind


# --- numbers ------------------------------------------------------------------------------------


def test_compute_and_size_are_in_percent_of_the_dense_run(finished):
    rows = read(tables_of(load_run(finished))["results"])
    branch = rows[list(PLANS).index("branch-50-20")]
    assert float(branch["stored_percent_of_dense"]) == pytest.approx(49.0)
    work = 100 * PLANS["branch-50-20"].work
    assert float(branch["compute_percent_of_dense"]) == pytest.approx(work)
    assert float(branch["whole_compute_percent_of_dense"]) == pytest.approx(100 + work)
    half = rows[list(PLANS).index("half-50")]
    assert half["whole_compute_percent_of_dense"] == half["compute_percent_of_dense"]


def test_without_a_finished_dense_run_its_compute_is_what_came_before_a_branch(tmp_path):
    folder = language_run(tmp_path / "run", seeds=(0,), names=("dense", "branch-50-20"))
    unfinish(folder, "dense", 0)
    row = read(tables_of(load_run(folder))["results"])[1]
    assert float(row["compute_percent_of_dense"]) == pytest.approx(100 * PLANS["branch-50-20"].work)


def test_the_cut_alone_is_the_end_and_what_was_gained_since_on_the_same_files(tmp_path):
    folder = language_run(tmp_path / "run", seeds=(0,), noise=0.0)
    run = load_run(folder)
    branch = run.variant("branch-50-5")
    cut = cut_alone(branch, BITS)
    ends = [row["bits"] for row in branch.seeds[0].of_kind("eval")]
    gained = branch.seeds[0].of_kind("cut")[0]["bits"] - ends[-1]
    assert BITS.measure(run).mean(cut) == pytest.approx(BITS.measure(run).mean(branch) + gained)
    assert cut.seeds[0].final("compute") == pytest.approx(
        branch.seeds[0].final("compute") * 8 / branch.seeds[0].final("steps")
    )
    assert cut.seeds[0].final("stored") == branch.seeds[0].final("stored")


def test_the_cut_table_has_those_that_were_cut_alone(finished):
    rows = read(tables_of(load_run(finished))["cuts"])
    assert len(rows) == sum(plan.cut is not None for plan in PLANS.values())
    assert all(float(row["cut_bits"]) > float(row["end_bits"]) for row in rows)


def test_losses_are_on_validation_files_where_no_test_was_read_and_that_is_said(tmp_path):
    folder = language_run(tmp_path / "run", names=DEMO, seeds=(0,), test=False)
    row = read(tables_of(load_run(folder))["results"])[0]
    assert "test_bits" not in row
    assert float(row["validation_bits"]) > 1.9
    assert "test files were not read" in notes_of(folder)
    heading, dense, *_ = closing_table(folder).splitlines()
    assert heading.split()[:2] == ["variant", "bits"]
    assert f"{float(row['validation_bits']):.3f}" in dense


def test_the_closing_table_has_bits_size_and_compute(finished):
    heading, *lines = closing_table(finished).splitlines()
    assert " ".join(heading.split()) == "variant bits stored % compute % with dense %"
    assert len(lines) == len(PLANS)
    assert max(map(len, (heading, *lines))) <= 100


# --- sentences ----------------------------------------------------------------------------------


def sentences(folder, **plans):
    """What is said of a run whose plans have these bits or other values."""
    changes = {name.replace("_", "-"): values for name, values in plans.items()}
    return says(load_run(language_run(folder, changes=changes, noise=0.0)), BITS)


def test_a_better_branch_pays_where_the_dense_run_exists_and_not_with_it(tmp_path):
    first, together, *_ = sentences(tmp_path / "run")
    assert first.startswith("Where the dense run exists anyway, a branch from it pays at 75 %")
    assert "50 % (0.041 bits better than narrow for 32 % of its compute)" in first
    assert "does not" not in first.split(";")[0]
    assert first.endswith(
        "with the dense run counted it pays at none of these sizes (1.4, 2.4 and 4.4 times the "
        "compute of narrow)."
    )
    assert together == (
        "All 3 sizes from one dense run, that run included, take 1.42 times its compute; 3 narrow "
        "networks take 1.52 times."
    )


def test_a_worse_branch_does_not_pay(tmp_path):
    first = sentences(tmp_path / "run", branch_30_37={"bits": 2.08})[0]
    assert "but does not at 30 % stored (0.030 bits worse than narrow for 79 %" in first
    worse = {"bits": 2.2}
    first = sentences(
        tmp_path / "all", branch_75_5=worse, branch_50_5=worse, branch_50_20=worse,
        branch_30_37=worse,
    )[0]  # fmt: skip
    assert "a branch from it does not pay at 75 % stored (0.259 bits worse" in first
    assert " pays at 75" not in first


def test_a_better_branch_that_takes_more_compute_does_not_pay(tmp_path):
    first = sentences(tmp_path / "run", branch_30_37={"work": 0.5})[0]
    assert "but does not at 30 % stored (0.010 bits better than narrow for 1.8 times its" in first


def test_a_branch_that_is_cheaper_even_with_the_dense_run_pays_there_too(tmp_path):
    first = sentences(tmp_path / "run", narrow_50={"work": 2.0})[0]
    assert "with the dense run counted it pays at 50 % alone (1.4, 0.57 and 4.4 times" in first
    long = {"work": 9.0}
    first = sentences(tmp_path / "all", narrow_75=long, narrow_50=long, narrow_30=long)[0]
    assert "it still pays at every size" in first


def test_a_difference_within_the_interval_is_called_none(tmp_path):
    folder = language_run(tmp_path / "run", names=("dense", "branch-50-20", "narrow-50"))
    for seed, loss in enumerate((1.99, 1.90, 2.01)):
        change_result(folder, "branch-50-20", seed, test_bits=loss)
        change_result(folder, "narrow-50", seed, test_bits=1.96 + 0.001 * seed)
    first = says(load_run(folder), BITS)[0]
    assert "pays at 50 % stored (no measurable difference from narrow for 32 % of its" in first
    assert first.endswith("it does not pay (2.4 times the compute of narrow).")


@pytest.mark.parametrize(
    ("seeds", "said"), [((0,), "One seed decides"), ((0, 1), "2 seeds decide")]
)
def test_few_seeds_decide_nothing(tmp_path, seeds, said):
    folder = language_run(tmp_path / "run", names=DEMO, seeds=seeds)
    assert says(load_run(folder), BITS)[0].startswith(f"{said} nothing; in th")
    assert answers_of(load_run(folder))[
        "Is a branch of 50 % better than a narrow network from scratch?"
    ].verdict.startswith("undecided")


def test_the_narrow_network_with_a_teacher_is_told_both_ways(tmp_path):
    taught = sentences(tmp_path / "run")[-1]
    assert taught == (
        "A narrow network with the dense one as teacher: at 50 % it is 0.038 bits better than the "
        "branch for 5.5 times its compute and at 30 % it is 0.071 bits better than the branch for "
        "2.8 times its compute."
    )
    bad = {"bits": 2.3}
    taught = sentences(tmp_path / "bad", narrow_50_teacher=bad, narrow_30_teacher=bad)[-1]
    assert taught.endswith("is not better than the branch at 50 % and 30 %.")


def test_a_run_without_the_narrow_network_with_a_teacher_says_so(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for folder in (tmp_path / "run" / "variants").glob("narrow-*-teacher*"):
        shutil.rmtree(folder)
    said = says(load_run(tmp_path / "run"), BITS)
    assert "this run leaves it out (docs/log.md has it)" in said[-1]


def test_the_best_branch_of_a_size_is_the_one_with_the_lowest_loss(finished):
    run = load_run(finished)
    assert [one.ours.name for one in rivals(run, "narrow", BITS)] == [
        "branch-75-5", "branch-50-20", "branch-30-37",
    ]  # fmt: skip
    assert [one.percent for one in rivals(run, "narrow-teacher", BITS)] == [50, 30]


# --- claims -------------------------------------------------------------------------------------


def pairs_of(found):
    return {(p.ours.name, p.other.name) for p in found.compared}


def test_claims_compare_each_rival(finished):
    found = answers_of(load_run(finished))
    at_50 = found["Is a branch of 50 % better than a narrow network from scratch?"]
    assert pairs_of(at_50) == {
        (name, "narrow-50") for name in ("branch-50-5", "branch-50-20", "branch-50-20-alone")
    }
    assert pairs_of(found["Is a branch better than a narrow network with as much compute?"]) == {
        ("branch-75-5", "narrow-75-short"),
        ("branch-50-20", "narrow-50-short"),
        ("branch-30-37", "narrow-30-short"),
    }
    taught = found["Is a branch better than a narrow network with the same teacher?"]
    assert ("branch-50-5", "narrow-50-teacher") in pairs_of(taught)
    assert taught.verdict == "worse"
    short = found["Is a branch better than one with the same teacher and as much compute?"]
    assert short.verdict == "better"
    assert pairs_of(found["Does the teacher help the branch?"]) == {
        ("branch-50-20", "branch-50-20-alone")
    }
    frozen = found["Are frozen bases better with both repairs, and as good as trained ones?"]
    assert pairs_of(frozen) == {("frozen-50", "frozen-50-plain"), ("frozen-50", "half-50")}
    assert frozen.tone == "mixed"


def test_compute_is_compared_as_a_share_of_the_rival(finished):
    found = answers_of(load_run(finished))
    at_75 = found["Is a branch of 75 % better than a narrow network from scratch?"]
    ratio = next(p for p in at_75.compared if p.measure.title == "Compute")
    assert ratio.change == pytest.approx(PLANS["branch-75-5"].work / 0.77)


def test_claims_of_rivals_that_were_not_run_are_left_out(tmp_path):
    folder = language_run(tmp_path / "run", names=("dense", "branch-50-20", "narrow-50"))
    assert len(answers_of(load_run(folder))) == 2


# --- the figures --------------------------------------------------------------------------------


def drawn(run):
    plot = plots_of(run)["pays"]
    with styled(LIGHT):
        return plot, plot.draw(LIGHT)


def test_the_first_figure_has_every_rival_in_three_panels_with_one_legend(finished):
    plot, figure = drawn(load_run(finished))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Stored size", "Compute, dense run excluded", "Compute, dense run included",
    ]  # fmt: skip
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 12
    for plan in PLANS.values():
        assert f"{plan.title} " in plot.alt
    assert plot.says == tuple(says(load_run(finished), BITS))


def test_the_axis_is_compressed_above_the_rivals_that_matter(finished):
    _, figure = drawn(load_run(finished))
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    assert high > 3.0  # the worst cut is in the picture
    heights = axes.transData.transform([(0, low), (0, 2.06), (0, high)])[:, 1]
    assert heights[1] - heights[0] > 2 * (heights[2] - heights[1])


def test_no_label_of_the_first_figure_covers_another(finished):
    _, figure = drawn(load_run(finished))
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert len(boxes) >= 5
        for i, box in enumerate(boxes):
            assert not any(box.shrunk(0.9, 0.9).overlaps(other) for other in boxes[:i])


def test_a_page_of_a_demo_shows_its_sentence_above_the_tables(tmp_path, monkeypatch):
    undrawn(monkeypatch)
    page = page_of(language_run(tmp_path / "run", names=DEMO, seeds=(0,)))
    words = page.text()
    assert "One seed decides nothing" in words
    assert words.index("One seed decides nothing") < words.index("Results")


def test_unfinished_and_missing_trainings_are_named_and_the_rest_is_compared(tmp_path, monkeypatch):
    undrawn(monkeypatch)
    folder = language_run(tmp_path / "run")
    for seed in (0, 1, 2):
        unfinish(folder, "narrow-30", seed)
    unfinish(folder, "branch-50-20", 1)
    first = says(load_run(folder), BITS)[0]
    assert first.startswith("2 seeds decide nothing")
    assert "30 %" not in first
    words = page_of(folder).text()
    assert "narrow, 30 %, seed 0: no result.json" in words


def test_without_any_narrow_network_nothing_is_said_and_the_page_stands(tmp_path, monkeypatch):
    undrawn(monkeypatch)
    folder = language_run(tmp_path / "run", names=("dense", "branch-50-20"), seeds=(0,))
    assert says(load_run(folder), BITS) == []
    assert "No narrow network of 50 % to compare the branch with." in page_of(folder).text()


def test_one_variant_alone_is_a_figure(tmp_path, monkeypatch):
    undrawn(monkeypatch)
    page_of(language_run(tmp_path / "run", names=("dense",), seeds=(0,)))


def test_a_variant_of_another_name_is_drawn_too(tmp_path):
    folder = language_run(tmp_path / "run", names=("dense", "half-50"), seeds=(0,))
    (folder / "variants" / "half-50").rename(folder / "variants" / "mine")
    _, figure = drawn(load_run(folder))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense run", "others"]


def test_other_files_and_a_cut_without_a_loss_are_said(tmp_path):
    folder = language_run(tmp_path / "run", names=("dense", "branch-50-20"), seeds=(0,))
    change_result(folder, "dense", 0, data_sha256="cd34")
    write_rows(folder / "variants/branch-50-20/seed-0/metrics.jsonl", [])
    said = notes_of(folder)
    assert "read 2 different sets of files" in said
    assert "No loss right after the cut was recorded for branch, 50 %" in said


def test_ranks_have_one_column_per_variant_that_was_cut(finished):
    rows = read(tables_of(load_run(finished))["ranks"])
    percent = float(rows[0]["branch-50-20_rank_percent"])
    assert percent == pytest.approx(100 * math.floor(64 * PLANS["branch-50-20"].rank) / 64)
    assert "narrow-50_rank_percent" not in rows[0]
    assert "branch-50-20_form" not in rows[0]


def test_the_page_does_not_load_torch():
    code = (
        "import orthotrain.lab.experiments.language.page\nimport sys\nprint('torch' in sys.modules)"
    )
    assert run_python(code).strip() == "False"
