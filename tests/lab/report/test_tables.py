"""General tables: settings, environment, what a measure shows, and the page of any run."""

import json
import math

import pytest

from lab.report.pages import answers_of, notes_of, page_of, plots_of, read, tables_of, undrawn
from orthotrain.errors import ConfigError
from orthotrain.lab.report import closing_table
from orthotrain.lab.report.load import Run, SeedRun, Variant, load_run
from orthotrain.lab.report.settings import environment_table, settings_table
from orthotrain.lab.report.stats import MISSING, Measure
from orthotrain.lab.report.tables import (
    ByVariant,
    Cell,
    Difference,
    Table,
    without_constants,
)


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


def run_of(tmp_path, **variants):
    made = [
        Variant(name, name, "", tuple(SeedRun(i, {}, {"x": x}) for i, x in enumerate(xs)), len(xs))
        for name, xs in variants.items()
    ]
    return Run(tmp_path, "run", {"baseline": "base"}, None, tuple(made), ())


def test_a_difference_is_a_column_with_its_interval(tmp_path):
    measure = Measure("x", "X", lambda seed: seed.final("x"), digits=2)
    run = run_of(tmp_path, base=(10.0, 12.0, 14.0), ours=(9.0, 11.5, 12.5))
    declared = ByVariant("t", "T", (measure,), difference=Difference(measure, lambda r: r.baseline))
    table = declared.table(run)
    assert table.head == ("Variant", "X", "Difference from base (95 % interval)")
    base, ours = table.rows
    assert base[2].shown == MISSING
    # Differences -1, -0.5, -1.5: the margin is 4.3027 * .5 / sqrt(3) = 1.242.
    assert (ours[2].shown, ours[2].aside) == ("-1.00", "-2.24 to +0.24")
    assert read(table)[1]["difference"] == "-1.0"


def test_an_infinite_mean_is_said_and_empty_in_the_file(tmp_path):
    infinite = Measure("x", "X", lambda seed: math.inf, logarithmic=True)
    table = ByVariant("t", "T", (infinite,)).table(run_of(tmp_path, base=(1.0,)))
    assert table.rows[0][1].shown == "infinite"
    assert read(table)[0]["log10_x"] == ""


def test_columns_that_say_the_same_are_told_once():
    rows = (("a", "x", "1"), ("b", "x", "1"))
    cells = tuple(tuple(map(Cell, row)) for row in rows)
    table = Table("t", "T", ("Variant", "With", "Seeds"), ("variant", "with", "seeds"), cells)
    short = without_constants(table, ("variant", "with"))
    assert (short.keys, short.note) == (("variant", "seeds"), "With: x.")
    assert [[cell.shown for cell in row] for row in short.rows] == [["a", "1"], ["b", "1"]]


# --- the page of a run that names none ------------------------------------------------------------


@pytest.fixture
def plain_run(write_run):
    return write_run(variants=["dense", "narrow"], steps=40, epochs=4, info={"page": ""})


def test_a_run_without_a_page_has_the_general_one(plain_run):
    run = load_run(plain_run)
    tables, plots = tables_of(run), plots_of(run)
    assert list(tables) == ["results", "costs", "comparisons", "seeds"]
    row = read(tables["results"])[0]
    assert {"test_accuracy_percent", "stored", "seeds"} <= set(row)
    assert all(plot.draw is not None for plot in plots.values())
    assert list(answers_of(run)) == ["Which variant has a better test accuracy than dense?"]
    assert closing_table(plain_run).splitlines()[0].split()[:3] == ["variant", "test", "%"]


def test_scores_of_an_unknown_experiment_become_columns(plain_run):
    file = plain_run / "variants/dense/seed-0/result.json"
    file.write_text(json.dumps({"scores": {"my_score": 0.25}, "steps": 3}))
    row = read(tables_of(load_run(plain_run))["results"])[0]
    assert row["my_score"] == "0.25"


def test_a_page_that_is_not_installed_is_said_and_replaced(write_run, monkeypatch):
    undrawn(monkeypatch)
    folder = write_run(variants=["dense"], seeds=[0], info={"page": "nowhere.to.be.found:PAGE"})
    assert "nowhere.to.be.found:PAGE could not be loaded" in page_of(folder).text()
    assert notes_of(folder) == ""


@pytest.mark.bad_input
def test_what_is_no_page_is_an_error(write_run):
    folder = write_run(variants=["dense"], seeds=[0], info={"page": "math:pi"})
    with pytest.raises(ConfigError, match="math:pi is a float"):
        closing_table(folder)


def test_a_new_experiment_brings_its_page_and_touches_nothing_else(
    write_run, tmp_path, monkeypatch
):
    (tmp_path / "my_experiment.py").write_text(
        "from orthotrain.lab.report.claims import Claim, each\n"
        "from orthotrain.lab.report.measures import accuracy\n"
        "from orthotrain.lab.report.page import Page\n"
        "from orthotrain.lab.report.tables import ByVariant\n"
        "TEST = accuracy('test')\n"
        "PAGE = Page(\n"
        "    results=(ByVariant('results', 'Results', (TEST,), seeds=True),),\n"
        "    closing={'test_accuracy_percent': 'test %'},\n"
        "    claims=lambda run: [Claim('Is it better?', each(run.variants, run.baseline),\n"
        "                              (TEST,))],\n"
        ")\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    undrawn(monkeypatch)
    info = {"page": "my_experiment:PAGE"}
    folder = write_run(variants=["dense", "narrow"], steps=40, epochs=4, info=info)
    page = page_of(folder)
    assert [t["data-name"] for t in page.all("table")][:2] == ["results", ""]
    assert "Is it better?" in page.text()
    assert closing_table(folder).splitlines()[0].split() == ["variant", "test", "%"]
