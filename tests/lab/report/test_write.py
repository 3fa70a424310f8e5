"""The page as a browser gets it: whole, closed, without the network, with nothing hidden."""

import base64
import json
import os
import re
import shutil

import matplotlib
import pytest

from lab.report.pages import Page, page_of, plots_of, undrawn
from orthotrain.errors import ConfigError, DataError
from orthotrain.lab.report import write_report
from orthotrain.lab.report.load import load_run
from orthotrain.lab.report.style import DARK, LIGHT, styled, to_png
from processes import run_python

FIGURES = (
    "pays", "accuracy", "curves", "schedules", "size", "ranks", "stability", "stability-mean",
    "cost",
)  # fmt: skip
TABLES = ("results", "costs", "comparisons", "seeds", "ranks", "settings", "environment")


def test_the_page_asks_the_network_for_nothing(finished_page):
    text = finished_page.read_text()
    assert "://" not in text
    assert not re.search(r"@import|url\(|<link|<iframe|fetch\(|XMLHttp", text)
    page = Page(text)
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all("src" not in script for script in page.all("script"))


def test_figures_and_tables_are_in_the_page_and_beside_it(finished_page):
    page, beside = Page(finished_page.read_text()), finished_page.parent
    images = page.all("img")
    names = [image["data-file"] for image in images]
    assert names == [f"{name}{dark}.png" for name in FIGURES for dark in ("", "-dark")]
    for image in images:
        content = base64.b64decode(image["src"].partition(",")[2])
        assert content.startswith(b"\x89PNG")
        assert content == (beside / image["data-file"]).read_bytes()
        assert image["alt"]
    tables = [table["data-name"] for table in page.all("table")]
    assert sorted(filter(None, tables)) == sorted(TABLES)  # the answers' have no name
    assert all((beside / f"{name}.csv").stat().st_size > 0 for name in TABLES)
    assert not list(beside.glob("*.tmp"))


def test_a_finished_run_has_no_missing_box(finished_page):
    text = Page(finished_page.read_text()).text()
    assert "What is missing" not in text
    assert "No figure" not in text


def test_the_file_of_one_training_is_drawn_beside_it(finished_run, tmp_path):
    path = tmp_path / "mine.jsonl"
    shutil.copy(finished_run / "variants" / "oialr-tuned" / "seed-0" / "metrics.jsonl", path)
    page = Page(write_report([path]).read_text())
    assert (tmp_path / "report" / "index.html").is_file()
    drawn = [image["data-file"] for image in page.all("img")]
    assert drawn[::2] == ["size.png", "ranks.png"]
    assert [table["data-name"] for table in page.all("table")] == ["ranks"]
    assert "Questions and answers" not in page.text()


@pytest.mark.parametrize(
    ("family", "baseline"),
    [("lowrank", "dense"), ("spectral", "avg"), ("latent", "baseline"), ("language", "dense")],
)
def test_an_empty_run_of_any_family_is_a_page_that_says_so(tmp_path, family, baseline):
    page = f"orthotrain.lab.experiments.{family}.page:PAGE"
    info = {"schema": 1, "recipe": "r", "variants": [{"name": baseline}], "seeds": [0]}
    (tmp_path / "run.json").write_text(json.dumps({**info, "page": page, "baseline": baseline}))
    page = page_of(tmp_path)
    assert page.all("img") == []
    assert f"{baseline}: no results at all" in page.text()
    assert "no two variants have a finished seed" in page.text()


@pytest.mark.parametrize(
    ("lost", "drawn", "explained"),
    [
        ("step", ["curves", "cost"], ["schedules"]),
        ("eval", ["curves"], []),
        ("size", ["cost"], ["size"]),
        ("rank", [], ["ranks"]),
        ("stability", [], ["stability", "stability-mean"]),
    ],
)
def test_without_a_kind_of_record_figures_draw_or_explain(write_run, lost, drawn, explained):
    folder = write_run(variants=["dense", "oialr-tuned"], seeds=[0], steps=40, epochs=4)
    for file in folder.glob("variants/*/*/metrics.jsonl"):
        kept = [x for x in file.read_text().splitlines() if json.loads(x)["kind"] != lost]
        file.write_text("\n".join(kept))
    plots = plots_of(load_run(folder))
    assert [name for name, plot in plots.items() if plot.draw is None] == explained
    assert all(plots[name].missing for name in explained)
    for name in drawn:
        with styled(LIGHT):
            plots[name].draw(LIGHT).draw_without_rendering()


def test_results_without_metrics_and_one_record_only_are_drawn(write_run):
    folder = write_run(variants=["dense", "oialr-tuned"], seeds=[0], steps=4, epochs=2)
    (folder / "variants/dense/seed-0/metrics.jsonl").unlink()
    for plot in plots_of(load_run(folder)).values():
        if plot.draw is not None:
            with styled(DARK):
                plot.draw(DARK).draw_without_rendering()


def test_names_are_text_not_markup(write_run, monkeypatch):
    undrawn(monkeypatch)
    title = '<script>alert(1)</script> $\\frac{1}$ & "x"'
    titled = [{"name": name, "title": title, "note": title} for name in ("dense", "narrow")]
    folder = write_run(variants=["dense", "narrow"], seeds=[0], info={"variants": titled})
    page = page_of(folder)
    assert len(page.all("script")) == 1
    text = page.text()
    assert f"more accurate than {title}?" in text


def test_a_title_with_dollars_is_drawn_as_it_is(write_run):
    folder = write_run(
        variants=["dense"],
        seeds=[0],
        steps=40,
        epochs=4,
        info={"variants": [{"name": "dense", "title": "cost $\\frac$ 5"}]},
    )
    with styled(LIGHT):
        plot = plots_of(load_run(folder))["accuracy"]
        assert plot.draw is not None
        plot.draw(LIGHT).draw_without_rendering()


def test_runs_of_several_families_are_sections_with_files_of_their_own(
    write_run, write_spectral, monkeypatch
):
    undrawn(monkeypatch)
    first = write_run(name="a/run", variants=["dense"], seeds=[0])
    second = write_spectral(name="b/run", names=["bn", "zca"], seeds=[0], steps=20)
    path = write_report([first, second])
    assert path == first.parent / "report" / "index.html"
    page = Page(path.read_text())
    assert [section["id"] for section in page.all("section")] == ["run", "run-2"]
    assert [a["href"] for a in page.all("a")] == ["#run", "#run-2"]
    files = [image["data-file"] for image in page.all("img")]
    assert {"run-accuracy.png", "run-2-error.png"} <= set(files)
    assert all((path.parent / name).exists() for name in (*files, "run-2-results.csv"))


def test_the_same_run_gives_the_same_files(write_run):
    run = load_run(write_run(variants=["dense"], seeds=[0], steps=40, epochs=4))
    draw = plots_of(run)["accuracy"].draw
    assert draw is not None
    with styled(LIGHT):
        assert to_png(draw(LIGHT)) == to_png(draw(LIGHT))


def test_matplotlib_is_left_as_it_was(write_run, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31.0)
    before = dict(matplotlib.rcParams)
    with styled(DARK):
        assert matplotlib.rcParams["font.size"] != 31.0
    assert dict(matplotlib.rcParams) == before


def test_out_dir_decides_where_the_report_goes(write_run, tmp_path, monkeypatch):
    undrawn(monkeypatch)
    folder = write_run(variants=["dense"], seeds=[0])
    assert write_report([folder], tmp_path / "x/y") == tmp_path / "x/y/index.html"
    assert write_report([folder]) == folder / "report/index.html"
    assert (tmp_path / "x/y/index.html").read_text() == (folder / "report/index.html").read_text()


@pytest.mark.bad_input
def test_no_run_is_an_error():
    with pytest.raises(ConfigError, match="at least one run folder"):
        write_report([])


@pytest.mark.bad_input
def test_a_folder_that_is_no_run_writes_nothing(write_run, tmp_path):
    good = write_run(variants=["dense"], seeds=[0])
    with pytest.raises(DataError, match="nowhere"):
        write_report([good, tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_no_text_is_shown_by_its_code(write_run, monkeypatch):
    """A name with bytes that are no UTF-8, as the file system takes them."""
    undrawn(monkeypatch)
    folder = write_run(name="run-\udcff", variants=["dense"], seeds=[0])
    assert "run-" in write_report([folder]).read_text(encoding="utf-8")


@pytest.mark.bad_input
def test_a_folder_that_cannot_be_written_is_a_typed_error(write_run, tmp_path, monkeypatch):
    undrawn(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="could not write into"):
        write_report([write_run(variants=["dense"], seeds=[0])], tmp_path / "file")


def test_a_failed_write_leaves_the_last_good_page(write_run, monkeypatch):
    undrawn(monkeypatch)
    folder = write_run(variants=["dense"], seeds=[0])
    page = write_report([folder])
    before = page.read_text()
    shutil.rmtree(folder / "variants")

    replace = os.replace

    def full(source, target):
        if target.name == "index.html":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_report([folder])
    assert page.read_text() == before
    assert not list(page.parent.glob("*.tmp"))


def test_a_report_needs_no_torch_and_no_pyplot(write_run):
    folder = write_run(variants=["dense"], seeds=[0], steps=40, epochs=4)
    program = (
        "import pathlib, sys; from orthotrain.lab.report import write, write_report\n"
        "write.to_png = lambda figure: b'png'\n"
        f"write_report([pathlib.Path({str(folder)!r})])\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    run_python(program)
    assert (folder / "report/index.html").exists()
