"""The page of a spectral run: whole, with its figures, and with what is missing named."""

import base64
import json
import shutil

import numpy as np
import pytest

from lab.report.synthetic_spectral import treated, write_rows
from lab.report.test_page import Page, page_of, undrawn
from orthotrain.errors import ConfigError
from orthotrain.lab.report import write_report
from orthotrain.lab.report.family import family_of
from orthotrain.lab.report.load import Run, load_run
from orthotrain.lab.report.spectral.figures import condition_plot, published_plot
from orthotrain.lab.report.spectral.style import (
    hues,
    power_of_ten,
    shown_in,
    spectral_curve,
    spread_out,
)
from orthotrain.lab.report.style import DARK, LIGHT, styled

FIGURES = (
    *("error", "conditions", "conditions-combined", "conditions-fixed", "published"),
    *("scale", "steps", "rates", "shares", "training"),
)
TABLES = (
    *("results", "conditioning", "costs", "published", "published-conditions"),
    *("comparisons", "rates", "seeds", "settings", "environment"),
)
SMALL = ["bn", "zca", "nog", "olr", "nog-olr"]


def edit(file, **changes):
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: v for key, v in content.items() if v is not ...}))


def keep_rows(folder, keep):
    for file in folder.glob("variants/*/*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write_rows(file, [row for row in rows if keep(row)])


def notes(folder):
    run = load_run(folder)
    return " ".join([*run.notes, *family_of(run).missing(run)])


def test_the_page_holds_every_figure_and_table_and_asks_the_network_for_nothing(spectral_page):
    text = spectral_page.read_text()
    assert "://" not in text
    page = Page(text)
    images = page.all("img")
    names = [image["data-file"] for image in images]
    assert names == [f"{name}.png" for name in FIGURES]
    for image in images:
        content = base64.b64decode(image["src"].partition(",")[2])
        assert content == (spectral_page.parent / image["data-file"]).read_bytes()
    assert [table["data-name"] for table in page.all("table")] == list(TABLES)
    assert all((spectral_page.parent / f"{name}.csv").stat().st_size > 0 for name in TABLES)
    assert "No figure" not in page.text()
    missing = page.text().partition("What is missing")[2].partition("What this shows")[0]
    assert missing.strip().startswith("Not part of this run")
    assert missing.count(".") == 1


def test_a_run_of_everything_lacks_nothing(spectral_run):
    assert notes(spectral_run) == ""


def test_alt_texts_tell_the_numbers(spectral_page):
    alts = {
        image["data-file"]: image["alt"] for image in Page(spectral_page.read_text()).all("img")
    }
    results = [
        json.loads((spectral_page.parents[1] / f"variants/nog/seed-{s}/result.json").read_text())
        for s in (0, 1, 2)
    ]
    mean = sum(100 * (1 - r["test_accuracy"]) for r in results) / 3
    assert f"ZCA + NOG {mean:.2f} ±" in alts["error.png"]
    assert "On the range: BatchNorm" in alts["conditions.png"]
    assert "ZCA + NOG root" in alts["shares.png"]
    assert all(len(alt) > 40 for alt in alts.values())


def test_verdicts_have_their_color(spectral_page):
    paragraphs = [p["class"] for p in Page(spectral_page.read_text()).all("p") if "class" in p]
    verdicts = [name for name in paragraphs if name.startswith("verdict")]
    assert len(verdicts) == 8
    assert set(verdicts) <= {f"verdict {tone}" for tone in ("good", "bad", "mixed", "unclear")}


def test_pooling_is_a_page_without_published_condition_curves(pooling_run, tmp_path, monkeypatch):
    undrawn(monkeypatch)
    page = page_of(pooling_run, out=tmp_path / "report")
    names = [image["data-file"] for image in page.all("img")]
    assert "published.png" not in names
    assert "conditions-combined.png" not in names
    tables = [table["data-name"] for table in page.all("table")]
    assert tables[3:5] == ["published", "published-fine"]
    text = page.text()
    assert "None of them is of NOG, OLR or orthogonal weights" in text
    assert "Not part of this run, so nothing is said about: SN, OL, OW, NOG + SN" in text
    assert "published condition curves" not in text


def test_both_families_in_one_report(write_run, write_spectral, tmp_path, monkeypatch):
    undrawn(monkeypatch)
    low_rank = write_run(name="low", variants=["dense"], seeds=[0], steps=40, epochs=4)
    spectral = write_spectral(name="spectral", names=SMALL, seeds=[0], steps=20)
    page = page_of(low_rank, spectral, out=tmp_path / "both")
    files = [image["data-file"] for image in page.all("img")]
    assert "low-accuracy.png" in files
    assert "spectral-error.png" in files
    assert (tmp_path / "both/spectral-comparisons.csv").exists()


@pytest.mark.bad_input
def test_a_family_of_another_version_is_an_error(write_spectral):
    folder = write_spectral(names=["bn"], seeds=[0], steps=5, info={"family": "other"})
    with pytest.raises(ConfigError, match=r"families lowrank, spectral, latent; .* says 'other'"):
        load_run(folder)


@pytest.mark.bad_input
@pytest.mark.parametrize(("kind", "lacking"), [("condition", "what, layer"), ("method", "method")])
def test_a_line_without_a_needed_field_is_an_error(write_spectral, kind, lacking):
    from orthotrain.errors import DataError

    folder = write_spectral(names=["bn"], seeds=[0], steps=5)
    with (folder / "variants/bn/seed-0/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, "step": 1}) + "\n")
    with pytest.raises(DataError, match=f"report needs {lacking} in a line of kind '{kind}'"):
        load_run(folder)


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
    said = notes(folder)
    assert "There is no variant 'bn', the baseline named in run.json" in said
    assert "nothing is said about: Newton-Schulz, SN, OL, OW, OLR, NOG + SN" in said
    assert "the root with a fixed norm" in said
    assert "dense network" not in said
    assert "1 finished seed, fewer than 3" in said


def test_without_the_root_alone_the_page_says_so(write_spectral):
    folder = write_spectral(names=["bn", "nog"], seeds=[0], steps=10)
    assert "no variant with the root alone" in notes(folder)


def test_records_that_are_missing_are_named(write_spectral):
    folder = write_spectral(names=SMALL, seeds=[0, 1, 2], steps=10)
    keep_rows(folder, lambda row: row.get("what") != "covariance")
    assert "ZCA + NOG: no condition of a covariance was recorded." in notes(folder)
    other = write_spectral(name="other", names=SMALL, steps=10)
    shutil.rmtree(other / "variants/nog/seed-2")
    edit(other / "run.json", variants=[{"name": n, "title": n} for n in SMALL])
    said = notes(other)
    assert "nog: run.json names no treatments" in said
    third = write_spectral(name="third", names=SMALL, steps=10)
    (third / "variants/nog/seed-2/result.json").unlink()
    assert "ZCA + NOG and ZCA alone finished 2 seeds in common of 2 and 3" in notes(third)


@pytest.mark.parametrize(
    ("lost", "explained"),
    [
        (("condition", None), ["conditions", "conditions-combined", "scale"]),
        (("method", "nearest_orthogonal_gradient"), ["steps"]),
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
    plots = {plot.name: plot for plot in family_of(run).plots(run)}
    assert [name for name, plot in plots.items() if plot.draw is None] == explained
    assert all(plots[name].missing for name in explained)
    if kind == "condition":
        with styled(DARK):
            plots["published"].draw(DARK).draw_without_rendering()


def test_an_empty_run_is_a_page_that_says_so(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    info = {"schema": 1, "family": "spectral", "recipe": "texture-gcp", "baseline": "avg"}
    (folder / "run.json").write_text(json.dumps({**info, "variants": [{"name": "avg"}]}))
    page = page_of(folder)
    assert page.all("img") == []
    assert "no variant has a finished seed" in page.text()
    assert "There is no variant with the root alone" in page.text()


def test_names_are_text_not_markup(write_spectral, monkeypatch):
    undrawn(monkeypatch)
    title = '<script>alert(1)</script> $\\frac{1}$ & "x"'
    variants = [
        {"name": "bn", "title": "BatchNorm", "treatments": []},
        {"name": "zca", "title": title, "treatments": ["root"]},
        {"name": "nog", "title": "NOG", "treatments": ["root", "nog"]},
    ]
    folder = write_spectral(names=["bn", "zca", "nog"], steps=10, info={"variants": variants})
    page = page_of(folder)
    assert len(page.all("script")) == 1
    assert f"points of test error against {title}" in page.text()


def test_one_record_and_killed_seeds_are_drawn(write_spectral):
    folder = write_spectral(names=SMALL, seeds=[0], steps=10)
    keep_rows(folder, lambda row: row["step"] == 0)
    (folder / "variants/nog/seed-0/result.json").unlink()
    (folder / "variants/olr/seed-0/metrics.jsonl").unlink()
    run = load_run(folder)
    for plot in (condition_plot(run, "single"), published_plot(run)):
        with styled(LIGHT):
            plot.draw(LIGHT).draw_without_rendering()


def test_the_same_run_gives_the_same_page(write_spectral, tmp_path, monkeypatch):
    undrawn(monkeypatch)
    folder = write_spectral(names=SMALL, seeds=[0, 1], steps=10)
    first, second = (write_report([folder], tmp_path / name) for name in "ab")
    assert first.read_text() == second.read_text()


# --- how lines are made and named -----------------------------------------------------------------


def test_a_curve_is_the_geometric_mean_of_each_seeds_medians():
    fields = {"condition_range": [1e2, 1e4]}
    variant = treated("nog", [1.0, 1.0], **fields)
    line = spectral_curve(variant, "condition", lambda row: row["condition_range"])
    assert line is not None
    np.testing.assert_allclose([line.mean, line.low, line.high], [[1e3], [1e2], [1e4]])
    plain = spectral_curve(
        variant, "condition", lambda row: row["condition_range"], logarithmic=False
    )
    assert plain is not None
    np.testing.assert_allclose(plain.mean, [5050.0])
    assert spectral_curve(variant, "condition", lambda row: float("inf")) is None


def test_every_variant_of_a_figure_looks_different(spectral_run):
    run = load_run(spectral_run)
    for theme in (LIGHT, DARK):
        look = hues(run, theme)
        for group in ("single", "combination", "fixed"):
            shown = [look[v.name] for v in shown_in(run, group)]
            assert len({(hue.color, hue.line) for hue in shown}) == len(shown)
            assert len({hue.label for hue in shown}) == len(shown)
        for treatment in ("nog", "olr"):
            shown = [look[v.name] for v in run.variants if treatment in v.treatments]
            assert len({(hue.color, hue.line) for hue in shown}) == len(shown)
    assert [v.name for v in shown_in(run, "fixed")] == [
        "zca", "nog", "olr", "zca-fixed", "nog-fixed", "olr-fixed",
    ]  # fmt: skip


def test_an_unknown_treatment_still_has_a_look(tmp_path):
    odd = treated("mystery", [1.0], title="odd")
    run = Run(tmp_path, "r", {"family": "spectral"}, None, (odd,), ())
    assert hues(run, LIGHT)["mystery"].label == "MYSTERY"


def test_names_are_pushed_apart_and_stay_beside_the_axes():
    places = spread_out([0.1, 0.11, 0.12, 0.9], 0.1)
    assert min(np.diff(places)) >= 0.1 - 1e-5
    assert places[3] == 0.9
    assert np.mean(places[:3]) == pytest.approx(0.11, abs=1e-4)
    top = spread_out([1.0, 1.0, 1.0], 0.1)
    assert max(top) <= 1.021
    assert min(spread_out([0.0, 0.0, 0.0], 0.1)) >= -0.021
    assert spread_out([], 0.1) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1e6, "1e6"), (2e5, "2e5"), (1000, "1000"), (0.05, "0.05"), (5e-3, "5e-3"), (1.0, "1")],
)
def test_powers_of_ten_are_short(value, shown):
    assert power_of_ten(value) == shown
