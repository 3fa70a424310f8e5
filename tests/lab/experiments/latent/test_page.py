"""The page of a run of generators: its numbers, and answers that follow them."""

import json

import pytest

from lab.experiments.latent.synthetic import (
    TREATMENTS,
    change_scores,
    latent_run,
    rename_scores,
    write_frames,
)
from lab.report.pages import (
    Page,
    answers_of,
    notes_of,
    page_of,
    plots_of,
    read,
    tables_of,
    undrawn,
)
from orthotrain.errors import DataError
from orthotrain.lab.experiments.latent.columns import look
from orthotrain.lab.experiments.latent.traversals.gallery import load_traversals, shown_seed
from orthotrain.lab.report import closing_table, write_report
from orthotrain.lab.report.load import load_run
from orthotrain.lab.report.style import LIGHT, styled

FIGURES = ("scores", "weight", "weight-sgd", "rates", "training")  # vectors have no traversals
TABLES = ("results", "turned", "weights", "costs")

NOG = "Does NOG separate"
OLR = "Does OLR separate"
WEIGHT = "Do treatments of the weight"
GRADIENT = "Do treatments of the gradient"
DIRECT = "Are treatments of the weight"
RANDOM = "Do coordinates mean more"
RIVALS = "Is NOG better than its rivals"
SEFA = "Is any treatment while training"
RATES = "Does NOG separate the latents better at every"
BEST = "Does NOG separate the latents better at the best"


def answer_to(folder, question):
    """The one answer to the question that begins so; of several the shortest question."""
    found = [a for q, a in answers_of(load_run(folder)).items() if q.startswith(question)]
    assert found, question
    return min(found, key=lambda one: len(one.claim.question))


def compared(found, *, measure=None):
    """What is compared: names of both, of one measure or of all."""
    return [
        (paired.ours.name, paired.other.name)
        for paired in found.compared
        if measure in (None, paired.measure.key)
    ]


def rows_of(folder, name):
    run = load_run(folder)
    return {row["variant"]: row for row in read(tables_of(run)[name])}


# --- the page -----------------------------------------------------------------------------------


def test_every_figure_is_drawn_and_every_table_declared(tmp_path):
    run = load_run(latent_run(tmp_path / "run"))
    plots, tables = plots_of(run), tables_of(run)
    drawn = {name: plot.draw for name, plot in plots.items() if plot.draw is not None}
    assert tuple(drawn) == FIGURES
    assert tuple(name for name, table in tables.items() if table.rows) == (
        *TABLES, "comparisons", "seeds",
    )  # fmt: skip
    for draw in drawn.values():
        with styled(LIGHT):
            draw(LIGHT).draw_without_rendering()


def test_a_run_with_nothing_finished_is_drawn_as_what_it_is(tmp_path):
    folder = latent_run(tmp_path / "run", names=["baseline", "nog"], seeds=[0])
    for result in folder.glob("variants/*/*/result.json"):
        result.unlink()
    for metrics in folder.glob("variants/*/*/metrics.jsonl"):
        metrics.write_text("")
    assert all(plot.draw is None for plot in plots_of(load_run(folder)).values())
    assert "nothing is compared with it" in notes_of(folder)
    assert "Nothing yet" in page_of(folder).text()


def test_the_baseline_is_the_one_that_the_run_names(tmp_path):
    folder = latent_run(tmp_path / "run")
    before = {q: (a.verdict, compared(a)) for q, a in answers_of(load_run(folder)).items()}
    rows = len(read(tables_of(load_run(folder))["comparisons"]))
    file = folder / "run.json"
    info = json.loads(file.read_text())
    for described in (info, *info["variants"]):
        for key in ("baseline", "name"):
            if key in described:
                described[key] = described[key].replace("baseline", "none")
    file.write_text(json.dumps(info))
    for path in (folder / "variants").glob("baseline*"):
        path.rename(path.with_name(path.name.replace("baseline", "none")))
    after = {
        q: (a.verdict, [tuple(n.replace("none", "baseline") for n in pair) for pair in compared(a)])
        for q, a in answers_of(load_run(folder)).items()
    }
    assert load_run(folder).baseline_name == "none"
    assert after == before
    assert len(read(tables_of(load_run(folder))["comparisons"])) == rows


def test_training_ends_with_the_scores_that_a_run_has(tmp_path):
    head, baseline, _ = closing_table(
        latent_run(tmp_path / "run", names=["baseline", "ol"])
    ).splitlines()
    assert "alignment sefa" in head
    assert "householder" not in head
    assert baseline.split()[0] == "BASELINE"


# --- tables -------------------------------------------------------------------------------------


def test_the_results_are_those_of_the_seeds(tmp_path):
    folder = latent_run(tmp_path / "run")
    rows = rows_of(folder, "results")
    assert list(rows) == [name.upper() for name in TREATMENTS]
    seeds = [
        json.loads(path.read_text())["scores"]["alignment"]
        for path in (folder / "variants" / "ol").glob("*/result.json")
    ]
    assert float(rows["OL"]["alignment"]) == pytest.approx(sum(seeds) / 5)
    assert rows["OL"]["seeds"] == "5 of 5"
    assert not any("_sefa" in key for key in rows["OL"])


def test_what_is_turned_after_training_has_a_table_of_its_own(tmp_path):
    folder = latent_run(tmp_path / "run")
    table = tables_of(load_run(folder))["turned"]
    assert table.keys[1:-1] == ("alignment_sefa", "alignment_householder", "alignment_rotated")
    rows = rows_of(folder, "turned")
    assert float(rows["BASELINE"]["alignment_householder"]) == 0.9
    assert rows["OL"]["alignment_householder"] == ""


def test_scores_of_codes_have_a_table_of_their_own(tmp_path):
    folder = latent_run(tmp_path / "run", names=["baseline", "ol"])
    assert not tables_of(load_run(folder))["codes"].rows
    change_scores(folder, "ol", 0, {"mig": 0.2, "mig_chance": 0.1})
    rows = rows_of(folder, "codes")
    assert {name: row["mig"] for name, row in rows.items()} == {
        "OL": "0.2",
        "Chance, or real data": "0.1",
    }
    assert "mig" not in rows_of(folder, "results")["OL"]
    assert not tables_of(load_run(folder))["images"].rows


def test_the_latent_weight_at_the_end_has_a_table_of_its_own(tmp_path):
    folder = latent_run(tmp_path / "run")
    rows = rows_of(folder, "weights")
    # Records at steps 10 to 40, of which the last tenth is the last.
    assert float(rows["NOG"]["gram_deviation"]) == pytest.approx(4.0)
    for what in ("weight", "gradient", "update"):
        assert 10 ** float(rows["NOG"][f"log10_{what}_condition"]) == pytest.approx(42.0)
    assert float(rows["OLR-SGD"]["olr_used_percent"]) == 100.0
    assert float(rows["OLR"]["olr_used_percent"]) == 0.0
    assert rows["NOG"]["olr_used_percent"] == ""
    shown = {r[0].shown: r[1].shown for r in tables_of(load_run(folder))["weights"].rows}
    assert shown["RETRACTION"].startswith("1.0e-7")


def test_sgd_is_compared_with_sgd(tmp_path):
    rows = tables_of(load_run(latent_run(tmp_path / "run")))["comparisons"].rows
    pairs = {(row[0].shown, row[1].shown) for row in rows}
    assert ("OLR-SGD", "BASELINE-SGD") in pairs
    assert ("OL", "BASELINE") in pairs
    assert ("OL", "BASELINE-SGD") not in pairs
    assert all(ours not in ("BASELINE", "BASELINE-SGD") for ours, _ in pairs)


def test_chance_and_real_data_are_the_last_row_of_the_scores(tmp_path):
    folder = latent_run(tmp_path / "run", names=["baseline", "ol"])
    assert list(rows_of(folder, "results")) == ["BASELINE", "OL"]
    for seed in range(5):
        change_scores(folder, "ol", seed, {"alignment_chance": 0.25, "frechet_floor": 0.01})
    rows = rows_of(folder, "results")
    last = rows["Chance, or real data"]
    assert (float(last["alignment"]), float(last["frechet"]), last["seeds"]) == (0.25, 0.01, "")
    assert not any(key.endswith(("_chance", "_floor")) for key in last)


def test_a_generator_that_hardly_moves_is_not_scored_by_interventions(tmp_path):
    folder = latent_run(tmp_path / "run", names=["baseline", "ol"], effects={"ol": 0.9})
    rename_scores(folder, {"alignment": "disentanglement"})
    for seed in range(5):
        scores = {"factor_spread": 0.1 if seed else 0.9, "vp": 0.5, "ppl": 0.0}
        change_scores(folder, "ol", seed, {**scores, "vp_chance": 0.1 if seed else 0.3})
    rows = rows_of(folder, "results")
    assert float(rows["OL"]["disentanglement"]) > 1.3
    # One seed is left of each, also of the path that is short because nothing moves.
    for name in ("disentanglement", "vp", "ppl"):
        assert rows["OL"][f"{name}_std"] == ""
    assert float(rows["Chance, or real data"]["vp"]) == pytest.approx(0.14)
    assert "OL, seed 1, 2, 3, 4: some factor of its images has less than 0.5" in notes_of(folder)


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "frechet", "verdict", "tone"),
    [
        (0.2, 0.0, "better", "good"),
        (0.2, 4.0, "better, at a worse distance from real data (Frechet)", "mixed"),
        (0.2, -3.0, "better", "good"),
        (-0.2, 0.0, "worse", "bad"),
        (0.0, 0.0, "within the interval", "unclear"),
    ],
)
def test_the_verdict_on_nog_follows_alignment_and_fidelity(
    effect, frechet, verdict, tone, tmp_path
):
    folder = latent_run(
        tmp_path / "run", effects={"nog": effect}, frechet={"nog": frechet}, noise=0.02
    )
    found = answer_to(folder, NOG)
    assert (found.verdict, found.tone) == (verdict, tone)
    assert [paired.measure.key for paired in found.compared] == ["alignment", "frechet"]


def test_two_seeds_decide_nothing(tmp_path):
    folder = latent_run(tmp_path / "run", effects={"nog": 0.3}, seeds=(0, 1))
    answers = answers_of(load_run(folder)).values()
    assert {found.verdict for found in answers} == {"undecided: 2 seeds, 3 needed"}


@pytest.mark.parametrize("score", ["disentanglement", "vp"])
def test_images_are_judged_by_interventions_and_without_factors_by_vp(score, tmp_path):
    folder = latent_run(tmp_path / "run", effects={"nog": 0.2}, noise=0.02)
    rename_scores(folder, {"alignment": score, "alignment_sefa": f"{score}_sefa"})
    found = answer_to(folder, NOG)
    assert found.verdict == "better"
    assert found.compared[0].measure.key == score
    assert ("nog", "baseline_sefa") in compared(answer_to(folder, SEFA))


def test_what_was_not_scored_after_sefa_is_not_compared_with_it(tmp_path):
    folder = latent_run(tmp_path / "run")
    rename_scores(folder, {"alignment": "disentanglement", "alignment_sefa": "vp_sefa"})
    assert compared(answer_to(folder, SEFA)) == []


def test_olr_under_adam_is_seen_to_have_done_nothing(tmp_path):
    found = answer_to(latent_run(tmp_path / "run"), OLR)
    assert found.verdict == "within the interval"
    adam, same, sgd, differ = found.claim.note.split(". ")
    assert adam.startswith("OLR: ")
    assert "0.00 ± 0.00 %" in adam
    assert "equal those of BASELINE" in same
    assert sgd.startswith("OLR-SGD: ")
    assert "100.00 ± 0.00 %" in sgd
    assert "differ from those of BASELINE-SGD" in differ


@pytest.mark.parametrize(("effect", "verdict"), [(0.2, "better"), (0.0, "within the interval")])
def test_olr_that_acts_is_judged_by_what_came_of_it(effect, verdict, tmp_path):
    folder = latent_run(tmp_path / "run")
    untreated = load_run(folder).baseline.finished
    for seed in range(5):
        metrics = folder / "variants" / "olr" / f"seed-{seed}" / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"used": false', '"used": true', 1))
        shift = effect + 0.01 * (-1) ** seed
        score = untreated[seed].result["scores"]["alignment"]
        change_scores(folder, "olr", seed, {"alignment": score + shift})
    found = answer_to(folder, OLR)
    assert found.verdict == verdict
    assert "OLR: OLR was used in 25.00 ± 0.00 % of the steps. The scores differ" in found.claim.note


@pytest.mark.parametrize(
    ("rotated", "verdict"),
    [(0.5, "better"), (0.9, "worse in 6 of 8")],
)
def test_every_treatment_is_compared_with_its_latent_turned_at_random(rotated, verdict, tmp_path):
    folder = latent_run(tmp_path / "run", effects={"ol": 0.3, "retraction": 0.3})
    for name in TREATMENTS:
        for seed in range(5):
            change_scores(folder, name, seed, {"alignment_rotated": rotated})
    found = answer_to(folder, RANDOM)
    assert verdict in found.verdict
    assert ("nog", "nog_rotated") in compared(found)
    assert not any("-lr" in ours or "-sgd" in ours for ours, _ in compared(found))


@pytest.mark.parametrize(
    ("effects", "weight", "gradient", "direct"),
    [
        ({}, "better", "within the interval", "better"),
        ({"nog": 0.2}, "better", "better (NOG)", "better (OL"),
        (
            {"ol": 0.0, "retraction": 0.0, "nog-update": 0.2},
            "within the interval",
            "better (NOG-",
            "worse",
        ),
    ],
)
def test_treatments_of_the_weight_and_of_the_gradient(effects, weight, gradient, direct, tmp_path):
    folder = latent_run(tmp_path / "run", effects=effects)
    assert answer_to(folder, WEIGHT).verdict == weight
    assert answer_to(folder, GRADIENT).verdict.startswith(gradient)
    found = answer_to(folder, DIRECT)
    assert len(compared(found, measure="alignment")) == 4
    assert ("ol", "nog-update") in compared(found)


def test_better_than_the_baseline_is_not_better_than_the_other(tmp_path):
    folder = latent_run(tmp_path / "run")
    for seed in range(5):
        wide, narrow = (spread * (-1) ** seed for spread in (0.02, 0.001))
        gains = {"baseline": 0, "ol": 0.02 + narrow, "retraction": narrow}
        for name, gain in {**gains, "nog": 0.015 + wide, "nog-update": 0.015 + wide}.items():
            change_scores(folder, name, seed, {"alignment": 0.5 + gain})
    assert answer_to(folder, WEIGHT).verdict == "better (OL)"
    assert answer_to(folder, GRADIENT).verdict == "within the interval"
    assert answer_to(folder, DIRECT).verdict == "within the interval"


def test_orthogonality_of_the_weight_is_correlated_with_the_score(tmp_path):
    found = answer_to(latent_run(tmp_path / "run"), DIRECT)
    # Only retraction has orthonormal rows here, and it is better than most.
    assert found.claim.note.startswith("Over 50 trainings with Adam")
    assert float(found.claim.note.split()[-1].rstrip(".")) < 0


def test_nog_is_compared_with_every_rival_and_with_what_comes_after_training(tmp_path):
    found = answer_to(latent_run(tmp_path / "run", effects={"nog": 0.25}), RIVALS)
    rivals = [("nog", name) for name in ("ol", "baseline_sefa", "baseline_householder")]
    assert compared(found, measure="alignment") == compared(found, measure="frechet") == rivals
    assert found.verdict.startswith("better (OL), worse (BASELINE after SeFa)")
    # SeFa turns the latents and leaves the images, so it has those of the baseline.
    sefa, baseline = (
        next(p for p in answer_to(tmp_path / "run", question).compared
             if p.measure.key == "frechet" and p.ours.name == "nog" and p.other.name == name)
        for question, name in ((RIVALS, "baseline_sefa"), (NOG, "baseline"))
    )  # fmt: skip
    assert sefa.difference == baseline.difference


def test_the_projector_is_judged_by_its_own_images(tmp_path):
    folder = latent_run(tmp_path / "run")
    rename_scores(
        folder,
        {"alignment": "disentanglement", "alignment_householder": "disentanglement_householder"},
    )
    for seed in range(5):
        changes = {"frechet_householder": 30.0, "factor_spread": 0.9}
        change_scores(folder, "baseline", seed, changes)
    found = answer_to(folder, RIVALS)
    projector = [p for p in found.compared if p.other.name == "baseline_householder"]
    assert [p.measure.mean(p.other) for p in projector] == pytest.approx([0.9, 30.0])
    for seed in range(5):
        change_scores(folder, "baseline", seed, {"factor_spread_householder": 0.1})
    assert rows_of(folder, "turned")["BASELINE"]["disentanglement_householder"] == ""
    pairs = compared(answer_to(folder, RIVALS), measure="disentanglement")
    assert ("nog", "baseline_householder") not in pairs


def test_every_training_with_adam_is_compared_with_sefa_on_the_baseline(tmp_path):
    found = answer_to(latent_run(tmp_path / "run"), SEFA)
    pairs = compared(found, measure="alignment")
    assert pairs == [(n, "baseline_sefa") for n in TREATMENTS if not n.endswith("-sgd")]
    assert found.verdict == "worse"
    better = latent_run(tmp_path / "other", effects={"ol": 0.5})
    assert answer_to(better, SEFA).verdict == "better (OL), worse in 9 of 10"


@pytest.mark.parametrize(
    ("effects", "every", "best"),
    [
        ({}, "within the interval", "within the interval"),
        (
            {"nog": 0.2, "nog-lr3": 0.3, "baseline-lr3": 0.3},
            "better (NOG)",
            "within the interval",
        ),
        ({"nog": 0.2, "nog-lr3": 0.4, "baseline-lr3": 0.1}, "better", "better"),
    ],
)
def test_nog_is_compared_at_the_same_rate_and_at_the_best_of_each(effects, every, best, tmp_path):
    folder = latent_run(tmp_path / "run", effects=effects, noise=0.02)
    found = answer_to(folder, RATES)
    assert found.verdict == every
    assert compared(found, measure="alignment") == [
        ("nog", "baseline"),
        ("nog-lr3", "baseline-lr3"),
    ]
    assert answer_to(folder, BEST).verdict == best


def test_the_mean_of_fewer_seeds_is_not_the_best(tmp_path):
    folder = latent_run(tmp_path / "run", effects={"nog-lr3": 0.9})
    assert compared(answer_to(folder, BEST))[0][0] == "nog-lr3"
    for seed in range(1, 5):
        (folder / "variants" / "nog-lr3" / f"seed-{seed}" / "result.json").unlink()
    assert compared(answer_to(folder, BEST))[0][0] == "nog"


def test_every_variant_is_part_of_some_answer(tmp_path):
    answers = answers_of(load_run(latent_run(tmp_path / "run"))).values()
    named = {ours for found in answers for ours, _ in compared(found)}
    assert named == {*TREATMENTS} - {"baseline-sgd"}


def test_what_was_not_run_is_not_asked(tmp_path, monkeypatch):
    undrawn(monkeypatch)
    text = page_of(latent_run(tmp_path / "run", names=["baseline", "ol"])).text()
    assert [question in text for question in (WEIGHT, NOG, DIRECT)] == [True, False, False]


# --- figures ------------------------------------------------------------------------------------


def test_variants_can_be_told_apart(tmp_path):
    looks = look(load_run(latent_run(tmp_path / "run")), LIGHT)
    adam = [(one.color, one.line) for name, one in looks.items() if not name.endswith("-sgd")]
    assert len(set(adam)) == len(adam)


@pytest.mark.parametrize("channels", [1, 3])
def test_traversals_are_drawn_and_their_page_lies_beside_the_report(
    channels, tmp_path, monkeypatch
):
    undrawn(monkeypatch)
    folder = latent_run(tmp_path / "run", names=["ol", "baseline"])
    write_frames(folder, ["baseline", "ol"], channels=channels)
    file = write_report([folder])
    page = Page(file.read_text())
    assert "traversals.png" in [image["data-file"] for image in page.all("img")]
    assert {"href": "traversals.html"} in page.all("a")
    beside = (file.parent / "traversals.html").read_text()
    assert "OL" in beside
    assert "latent-linear: what each latent coordinate does" in beside
    # The baseline comes first, whatever the order of the run.
    assert list(load_traversals(load_run(folder))) == ["baseline", "ol"]


def test_the_figure_of_traversals_leaves_controls_to_the_page(tmp_path):
    names = ["baseline", "ol", "nog-lr3", "baseline-sgd"]
    folder = latent_run(tmp_path / "run", names=names)
    write_frames(folder, names)
    figure = plots_of(load_run(folder))["traversals"].draw(LIGHT)
    assert [axes.get_ylabel() for axes in figure.axes] == ["BASELINE", "OL"]


def test_without_traversals_there_is_no_page_and_no_link(tmp_path, monkeypatch):
    undrawn(monkeypatch)
    file = write_report([latent_run(tmp_path / "run", names=["baseline"])])
    assert {"href": "traversals.html"} not in Page(file.read_text()).all("a")
    assert not (file.parent / "traversals.html").exists()


def test_the_seed_shown_is_one_that_all_variants_have(tmp_path):
    folder = latent_run(tmp_path / "run", names=["baseline", "ol"])
    write_frames(folder, ["baseline"], seed=0)
    write_frames(folder, ["baseline", "ol"], seed=2)
    assert shown_seed(load_run(folder)) == 2


@pytest.mark.bad_input
def test_a_damaged_file_of_traversals_is_named(tmp_path):
    folder = latent_run(tmp_path / "run", names=["baseline"])
    write_frames(folder, ["baseline"])
    file = folder / "variants" / "baseline" / "seed-0" / "traversals.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"traversals\.npz is damaged .* train this seed again"):
        write_report([folder])
