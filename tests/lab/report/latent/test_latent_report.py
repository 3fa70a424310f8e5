"""The page of a run of generators: whole, and with a verdict that follows the numbers."""

from __future__ import annotations

import csv
import json
import math

import pytest

from lab.report.latent.synthetic import (
    TREATMENTS,
    change_scores,
    latent_run,
    rename_scores,
    write_frames,
)
from lab.report.test_page import Page
from orthotrain.errors import DataError
from orthotrain.lab.report import write_report
from orthotrain.lab.report.family import family_of
from orthotrain.lab.report.latent.gallery import load_traversals, shown_seed, traversal_plot
from orthotrain.lab.report.latent.look import hues
from orthotrain.lab.report.latent.measures import rank_correlation
from orthotrain.lab.report.latent.tables import (
    comparisons_table,
    results_table,
    turned_table,
    weights_table,
)
from orthotrain.lab.report.load import load_run
from orthotrain.lab.report.style import LIGHT

FIGURES = ("scores", "weight", "weight-sgd", "rates", "training")  # vectors have no traversals


def finding(folder, title):
    run = load_run(folder)
    found = [f for f in family_of(run).findings(run) if f.title.startswith(title)]
    assert len(found) == 1, title
    return found[0]


def test_the_page_holds_every_figure_and_table_and_asks_the_network_for_nothing(tmp_path):
    text = write_report([latent_run(tmp_path / "run")]).read_text()
    assert "://" not in text
    page = Page(text)
    shown = [i["data-file"] for i in page.all("img") if "-dark" not in i["data-file"]]
    assert shown == [f"{name}.png" for name in FIGURES]
    tables = [table["data-name"] for table in page.all("table")]
    assert tables[:4] == ["results", "turned", "weights", "costs"]
    assert "no test accuracy" not in text


def test_a_run_with_nothing_finished_is_drawn_as_what_it_is(tmp_path):
    folder = latent_run(tmp_path / "run", names=["none", "nog"], seeds=[0])
    for result in folder.glob("variants/*/*/result.json"):
        result.unlink()
    for metrics in folder.glob("variants/*/*/metrics.jsonl"):
        metrics.write_text("")
    run = load_run(folder)
    plots = family_of(run).plots(run)
    assert [p.name for p in plots if p.draw is None] == [
        "scores", "weight", "rates", "traversals", "training",
    ]  # fmt: skip
    assert "no treatment has anything to be held against" in " ".join(family_of(run).missing(run))
    assert "Nothing yet" in write_report([folder]).read_text()


def test_the_results_are_those_of_the_seeds(tmp_path):
    run = load_run(latent_run(tmp_path / "run"))
    table = list(csv.DictReader(results_table(run).csv().splitlines()))
    assert [row["variant"] for row in table] == [name.upper() for name in TREATMENTS]
    seeds = [
        json.loads(path.read_text())["scores"]["alignment"]
        for path in (tmp_path / "run" / "variants" / "ol").glob("*/result.json")
    ]
    ol = next(row for row in table if row["variant"] == "OL")
    assert float(ol["alignment"]) == pytest.approx(sum(seeds) / 5)
    assert ol["seeds"] == "5 of 5"


def test_what_is_turned_after_training_has_a_table_of_its_own(tmp_path):
    run = load_run(latent_run(tmp_path / "run"))
    assert not any("_sefa" in key for key in results_table(run).keys)
    table = turned_table(run)
    assert table.keys[1:-1] == ("alignment_sefa", "alignment_householder", "alignment_rotated")
    rows = {row["variant"]: row for row in csv.DictReader(table.csv().splitlines())}
    assert float(rows["NONE"]["alignment_householder"]) == 0.9
    assert rows["OL"]["alignment_householder"] == ""


def test_the_latent_weight_at_the_end_has_a_table_of_its_own(tmp_path):
    run = load_run(latent_run(tmp_path / "run"))
    table = weights_table(run)
    rows = {row["variant"]: row for row in csv.DictReader(table.csv().splitlines())}
    # Records at steps 10 to 40, of which the last tenth is the last.
    assert float(rows["NOG"]["gram_deviation"]) == pytest.approx(4.0)
    for what in ("weight", "gradient", "update"):
        assert 10 ** float(rows["NOG"][f"log10_{what}_condition"]) == pytest.approx(42.0)
    assert float(rows["OLR-SGD"]["olr_used_percent"]) == 100.0
    assert float(rows["OLR"]["olr_used_percent"]) == 0.0
    assert rows["NOG"]["olr_used_percent"] == ""
    shown = {row[0].shown: row[1].shown for row in table.rows}
    assert (shown["NOG"], shown["RETRACTION"]) == ("4.000 ± 0.000", "1.0e-07")


def test_sgd_is_held_against_sgd(tmp_path):
    run = load_run(latent_run(tmp_path / "run"))
    pairs = {(row[0].shown, row[1].shown) for row in comparisons_table(run).rows}
    assert ("OLR-SGD", "NONE-SGD") in pairs
    assert ("OL", "NONE") in pairs
    assert ("OL", "NONE-SGD") not in pairs
    assert all(ours not in ("NONE", "NONE-SGD") for ours, _ in pairs)


@pytest.mark.parametrize(
    ("effect", "frechet", "verdict", "tone"),
    [
        (0.2, 0.0, "yes; fidelity not told apart", "good"),
        (0.2, 4.0, "yes, at worse fidelity", "mixed"),
        (0.2, -3.0, "yes, at better fidelity", "good"),
        (-0.2, 0.0, "no, worse", "bad"),
        (0.0, 0.0, "inside the spread", "unclear"),
    ],
)
def test_the_verdict_on_nog_follows_alignment_and_fidelity(
    effect, frechet, verdict, tone, tmp_path
):
    folder = latent_run(
        tmp_path / "run", effects={"nog": effect}, frechet={"nog": frechet}, noise=0.02
    )
    found = finding(folder, "Does NOG separate")
    assert (found.verdict, found.tone) == (verdict, tone)


def test_no_winner_on_fewer_than_five_seeds(tmp_path):
    folder = latent_run(tmp_path / "run", effects={"nog": 0.3}, seeds=(0, 1, 2, 3))
    found = finding(folder, "Does NOG separate")
    assert found.verdict == "better, but of fewer than 5 seeds: no winner is named"
    assert found.tone == "unclear"
    assert "nothing is decided" in finding(folder, "Is it the orthogonality").verdict
    assert "nothing is decided" in finding(folder, "Is SeFa").verdict
    assert "nothing is decided" in finding(folder, "Does the learning").verdict
    assert "nothing is decided" in finding(folder, "Is NOG better").verdict


def test_olr_under_adam_is_seen_to_have_done_nothing(tmp_path):
    found = finding(latent_run(tmp_path / "run"), "Does OLR do anything")
    assert (found.verdict, found.tone) == ("no: it was never seen to act", "bad")
    assert "OLR: used in 0.00 ± 0.00 %" in found.sentences[0]
    assert "to the last digit" in found.sentences[0]
    assert "OLR-SGD: used in 100.00 ± 0.00 %" in found.sentences[1]
    assert "differ from those of nothing done" in found.sentences[1]


@pytest.mark.parametrize(
    ("effect", "seeds", "verdict"),
    [
        (0.2, 5, "it acts, in 25 % of the steps; better"),
        (0.0, 5, "it acts, in 25 % of the steps; inside the spread"),
        (0.2, 4, "it acts, in 25 % of the steps; fewer than 5 seeds: nothing is decided"),
    ],
)
def test_olr_that_acts_is_judged_by_what_came_of_it(effect, seeds, verdict, tmp_path):
    folder = latent_run(tmp_path / "run", seeds=range(seeds))
    for seed in range(seeds):
        metrics = folder / "variants" / "olr" / f"seed-{seed}" / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"used": false', '"used": true', 1))
        shift = effect + 0.01 * (-1) ** seed
        none = load_run(folder).variants[0].finished[seed].result["scores"]["alignment"]
        change_scores(folder, "olr", seed, {"alignment": none + shift})
    found = finding(folder, "Does OLR do anything")
    assert (found.verdict, found.tone) == (verdict, "unclear")
    assert found.sentences[1].startswith("Alignment with the true directions: OLR")


@pytest.mark.parametrize(
    ("rotated", "verdict"), [(0.5, "yes in 5 of 5 treatments"), (0.9, "yes in 0 of 5 treatments")]
)
def test_every_treatment_is_held_against_its_latent_turned_at_random(rotated, verdict, tmp_path):
    folder = latent_run(tmp_path / "run", effects={"ol": 0.02, "retraction": 0.02})
    for name in TREATMENTS:
        for seed in range(5):
            change_scores(folder, name, seed, {"alignment_rotated": rotated})
    found = finding(folder, "Do coordinates mean more")
    assert found.verdict == verdict
    assert "NOG latents rotated at random 0." in found.sentences[1]


def test_chance_and_real_images_are_the_last_row_of_the_scores(tmp_path):
    folder = latent_run(tmp_path / "run", names=["none", "ol"])
    assert results_table(load_run(folder)).rows[-1][0].shown == "OL"
    for seed in range(5):
        change_scores(folder, "ol", seed, {"alignment_chance": 0.25, "frechet_floor": 0.01})
    table = results_table(load_run(folder))
    *_, last = csv.DictReader(table.csv().splitlines())
    assert last["variant"] == "Chance, or real against real"
    assert (float(last["alignment"]), float(last["frechet"])) == (0.25, 0.01)
    assert not any(key.endswith(("_chance", "_floor")) for key in table.keys)


def test_a_gain_of_the_weight_is_read_beside_fidelity(tmp_path):
    folder = latent_run(tmp_path / "run", frechet={"ol": 4.0})
    found = finding(folder, "Is it the orthogonality")
    assert found.verdict.endswith("better than nothing, 1 of 2 at worse fidelity")
    assert found.tone == "mixed"
    assert any(said.startswith("Weight against gradient: ") for said in found.sentences)


def test_the_projector_is_judged_by_its_own_images(tmp_path):
    folder = latent_run(tmp_path / "run")
    rename_scores(
        folder,
        {"alignment": "disentanglement", "alignment_householder": "disentanglement_householder"},
    )
    for seed in range(5):
        change_scores(folder, "none", seed, {"frechet_householder": 30.0, "factor_spread": 0.9})
    said = finding(folder, "Is NOG better").sentences
    assert any("NONE after the Householder projector 0.900" in one for one in said)
    assert "NONE after the Householder projector 30.000" in said[-1]
    for seed in range(5):
        change_scores(folder, "none", seed, {"factor_spread_householder": 0.1})
    table = list(csv.DictReader(turned_table(load_run(folder)).csv().splitlines()))
    assert table[0]["disentanglement_householder"] == ""
    said = finding(folder, "Is NOG better").sentences
    assert not any("Householder projector 0.900" in one for one in said)


def test_the_mean_of_fewer_seeds_is_not_the_best(tmp_path):
    folder = latent_run(tmp_path / "run", effects={"nog-lr3": 0.9})
    for seed in range(1, 5):
        (folder / "variants" / "nog-lr3" / f"seed-{seed}" / "result.json").unlink()
    assert ", is OL, " in finding(folder, "Is SeFa").sentences[1]


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ({}, "yes: only treatments of the weight are better than nothing"),
        ({"nog": 0.2}, "both are better than nothing in some treatment"),
        (
            {"ol": 0.0, "retraction": 0.0, "nog-update": 0.2},
            "no: only treatments of the gradient are better",
        ),
        ({"ol": 0.0, "retraction": 0.0}, "neither is better than nothing"),
    ],
)
def test_weight_or_gradient(effects, verdict, tmp_path):
    found = finding(latent_run(tmp_path / "run", effects=effects), "Is it the orthogonality")
    assert found.verdict == verdict


def test_told_from_nothing_is_not_told_from_each_other(tmp_path):
    folder = latent_run(tmp_path / "run")
    for seed in range(5):
        wide, narrow = (spread * (-1) ** seed for spread in (0.02, 0.001))
        gains = {"none": 0, "ol": 0.02 + narrow, "retraction": narrow}
        for name, gain in {**gains, "nog": 0.015 + wide, "nog-update": 0.015 + wide}.items():
            change_scores(folder, name, seed, {"alignment": 0.5 + gain})
    found = finding(folder, "Is it the orthogonality")
    expected = "yes: only treatments of the weight are better than nothing, but the two are not "
    assert (found.verdict, found.tone) == (f"{expected}told apart", "mixed")


def test_sefa_on_nothing_done_is_the_rival_of_every_treatment(tmp_path):
    found = finding(latent_run(tmp_path / "run"), "Is SeFa")
    assert found.verdict == "nothing is better than SeFa on nothing done"
    assert "0.900 ± 0.000 after the Householder projector" in found.sentences[0]
    better = latent_run(tmp_path / "other", effects={"ol": 0.5})
    assert finding(better, "Is SeFa").verdict.startswith("no: the best treatment is above")


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ({}, "the same at every rate; at the best rate of each: inside the spread"),
        (
            {"nog": 0.2, "nog-lr3": 0.3, "none-lr3": 0.3},
            "depends on the rate; at the best rate of each: inside the spread",
        ),
        (
            {"nog": 0.2, "nog-lr3": 0.4, "none-lr3": 0.1},
            "the same at every rate; at the best rate of each: better",
        ),
    ],
)
def test_nog_is_held_against_nothing_at_the_same_rate_and_at_the_best_of_each(
    effects, verdict, tmp_path
):
    found = finding(latent_run(tmp_path / "run", effects=effects, noise=0.02), "Does the learning")
    assert found.verdict == verdict
    assert "NOG-LR3" in found.sentences[1]
    assert "NONE-LR3" in found.sentences[1]
    assert found.sentences[-1].startswith("Frechet distance: ")


def test_nog_is_held_against_every_rival_and_against_what_comes_after_training(tmp_path):
    found = finding(latent_run(tmp_path / "run", effects={"nog": 0.25}), "Is NOG better")
    # In alignment, then in fidelity, where SeFa has the images of nothing done.
    assert len(found.sentences) == 6
    assert ", NONE 4.996" in found.sentences[4]
    for said, rival in zip(
        found.sentences[:3],
        ("OL", "NONE after SeFa", "NONE after the Householder projector"),
        strict=True,
    ):
        assert f", {rival} 0." in said
    assert found.verdict == "better than 1 of 3, worse than 1"


def test_a_rival_of_better_images_is_named(tmp_path):
    folder = latent_run(tmp_path / "run", effects={"nog": 0.25}, frechet={"nog": 4.0})
    found = finding(folder, "Is NOG better")
    assert found.verdict.endswith("; at worse fidelity than 1 of those it is better than")


def test_without_a_record_of_olr_nothing_is_said_of_it(tmp_path):
    folder = latent_run(tmp_path / "run", names=["none", "olr"])
    for metrics in (folder / "variants" / "olr").glob("*/metrics.jsonl"):
        kept = [one for one in metrics.read_text().splitlines() if '"method"' not in one]
        metrics.write_text("\n".join(kept) + "\n")
    run = load_run(folder)
    assert not [f for f in family_of(run).findings(run) if f.title.startswith("Does OLR do any")]


def test_orthogonality_of_the_weight_is_held_against_the_score(tmp_path):
    found = finding(latent_run(tmp_path / "run"), "Is it the orthogonality")
    # Only retraction has orthonormal rows here, and it is better than most.
    (said,) = [s for s in found.sentences if "rank correlation" in s]
    assert said.startswith("Over 50 trainings with Adam")
    assert float(said.split()[-1].rstrip(".")) < 0


def test_rank_correlation_shares_ranks_of_equal_values():
    assert rank_correlation([(1, 10), (2, 20), (3, 15), (9, 30)]) == pytest.approx(0.8)
    assert rank_correlation([(1, 1), (1, 2), (2, 3)]) == pytest.approx(3**0.5 / 2)
    assert math.isnan(rank_correlation([(1, 1), (1, 2), (1, 3)]))
    assert math.isnan(rank_correlation([(1, 1), (2, 2)]))


def test_images_without_factors_are_judged_by_vp(tmp_path):
    folder = latent_run(tmp_path / "run", effects={"nog": 0.2}, noise=0.02)
    rename_scores(folder, {"alignment": "vp", "alignment_sefa": "vp_sefa"})
    found = finding(folder, "Does NOG separate")
    assert found.verdict == "yes; fidelity not told apart"
    assert found.sentences[0].startswith("Variation predictability: NOG")
    assert "after SeFa" in finding(folder, "Is SeFa").sentences[0]


def test_a_generator_that_hardly_moves_is_not_scored_by_interventions(tmp_path):
    folder = latent_run(tmp_path / "run", names=["none", "ol"], effects={"ol": 0.9})
    rename_scores(folder, {"alignment": "disentanglement"})
    for seed in range(5):
        scores = {"factor_spread": 0.1 if seed else 0.9, "vp": 0.5, "vp_chance": 0.1, "ppl": 0.0}
        change_scores(folder, "ol", seed, scores)
    run = load_run(folder)
    rows = {r["variant"]: r for r in csv.DictReader(results_table(run).csv().splitlines())}
    assert float(rows["OL"]["disentanglement"]) > 1.3
    # One seed is left of each, also of the path that is short because nothing moves.
    for name in ("disentanglement", "vp", "ppl"):
        assert rows["OL"][f"{name}_std"] in ("", "nan")
    assert float(rows["Chance, or real against real"]["vp"]) == pytest.approx(0.1)
    (note,) = family_of(run).missing(run)
    assert note.startswith("OL, seed 1, 2, 3, 4: some factor of its images has less than 0.5")


def test_missing_variants_are_named(tmp_path):
    folder = latent_run(tmp_path / "run", names=["none", "ol"])
    assert finding(folder, "Does NOG separate").verdict == "not measured"
    assert finding(folder, "Is it the orthogonality").verdict == "not measured"


def test_variants_can_be_told_apart(tmp_path):
    run = load_run(latent_run(tmp_path / "run"))
    looks = hues(run, LIGHT)
    adam = [(h.color, h.line) for name, h in looks.items() if not name.endswith("-sgd")]
    assert len(set(adam)) == len(adam)


@pytest.mark.parametrize("channels", [1, 3])
def test_traversals_are_drawn_and_their_page_lies_beside_the_report(channels, tmp_path):
    folder = latent_run(tmp_path / "run", names=["ol", "none"])
    write_frames(folder, ["none", "ol"], channels=channels)
    page = write_report([folder])
    assert "traversals.png" in [i["data-file"] for i in Page(page.read_text()).all("img")]
    assert '<a href="traversals.html">' in page.read_text()
    beside = (page.parent / "traversals.html").read_text()
    assert "OL" in beside
    assert "latent-linear: what each latent coordinate does" in beside
    # Nothing done comes first, whatever the order of the run.
    assert list(load_traversals(load_run(folder))) == ["none", "ol"]


def test_the_figure_of_traversals_leaves_controls_to_the_page(tmp_path):
    names = ["none", "ol", "nog-lr3", "none-sgd"]
    folder = latent_run(tmp_path / "run", names=names)
    write_frames(folder, names)
    figure = traversal_plot(load_run(folder)).draw(LIGHT)
    assert [axes.get_ylabel() for axes in figure.axes] == ["NONE", "OL"]


def test_without_traversals_there_is_no_page_and_no_link(tmp_path):
    page = write_report([latent_run(tmp_path / "run", names=["none"])])
    assert "traversals.html" not in page.read_text().replace("traversals.html beside this", "")
    assert not (page.parent / "traversals.html").exists()


def test_the_seed_shown_is_one_that_all_variants_have(tmp_path):
    folder = latent_run(tmp_path / "run", names=["none", "ol"])
    write_frames(folder, ["none"], seed=0)
    write_frames(folder, ["none", "ol"], seed=2)
    assert shown_seed(load_run(folder)) == 2


@pytest.mark.bad_input
def test_a_damaged_file_of_traversals_is_named(tmp_path):
    folder = latent_run(tmp_path / "run", names=["none"])
    write_frames(folder, ["none"])
    file = folder / "variants" / "none" / "seed-0" / "traversals.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"traversals\.npz is damaged .* train this seed again"):
        write_report([folder])
