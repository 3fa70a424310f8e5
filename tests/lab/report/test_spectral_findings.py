"""The verdicts say what the numbers say, whichever way they point."""

import pytest

from lab.report.synthetic_spectral import Effect, treated
from orthotrain.lab.report.load import Run, load_run
from orthotrain.lab.report.spectral.findings import findings

NEAR = (1.0, 1.02, 0.99)
CLAIMS = [
    "Does NOG improve conditioning?",
    "Does OLR improve conditioning?",
    "Does NOG improve accuracy?",
    "Does OLR improve accuracy?",
    "What is left of NOG when the weight norm is held fixed?",
    "What is left of OLR when the weight norm is held fixed?",
]


def run_of(tmp_path, *variants):
    info = {"family": "spectral", "baseline": "baseline"}
    return Run(tmp_path, "run", info, None, variants, ())


def found(run, title):
    return next(finding for finding in findings(run) if finding.title == title)


def conditioned(name, errors=(10.0, 12.0, 14.0), *, wide=1.0, ridged=1.0, single=1.0, double=1.0):
    """A variant whose conditions are these times 1e5, 1e3, 1e9 and 1e16, slightly scattered."""
    count = len(errors)
    return treated(
        name,
        errors,
        title=name.upper(),
        condition_range=[1e5 * wide * n for n in NEAR[:count]],
        condition_ridge=[1e3 * ridged * n for n in NEAR[count - 1 :: -1]],
        condition_float32=[1e9 * single * n for n in NEAR[:count]],
        condition_float64=[1e16 * double * n for n in NEAR[:count]],
        largest=[10.0 * ridged * n for n in NEAR[count - 1 :: -1]],
    )


SENSES = ("wide", "ridged", "single", "double")
LESS = {"wide": 0.1, "ridged": 0.1}


@pytest.mark.parametrize(
    ("change", "verdict", "tone"),
    [
        (dict.fromkeys(SENSES, 0.1), "yes, in all 4 senses", "good"),
        (dict.fromkeys(SENSES, 9.0), "no, worse in all 4 senses", "bad"),
        ({"wide": 0.1, "ridged": 9}, "depends on the sense: 1 better, 1 worse of 4", "mixed"),
        ({"double": 0.1}, "yes in 1 of 4 senses", "mixed"),
        ({"double": 9}, "no, worse in 1 of 4 senses", "bad"),
        ({}, "inside the spread", "unclear"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["nog", "olr"])
def test_the_verdict_on_conditioning_follows_the_numbers(tmp_path, name, change, verdict, tone):
    root, ours = conditioned("root"), conditioned(name, **change)
    # A little scatter of its own, so that an equal pair is not equal to the last digit.
    ours.seeds[0].rows["condition"][0]["condition_range"] *= 1.05
    ours.seeds[1].rows["condition"][0]["condition_ridge"] *= 1.05
    ours.seeds[1].rows["condition"][0]["condition_float32"] *= 1.05
    ours.seeds[2].rows["condition"][0]["condition_float64"] *= 0.95
    finding = found(run_of(tmp_path, root, ours), f"Does {name.upper()} improve conditioning?")
    assert (finding.verdict, finding.tone) == (verdict, tone)


def test_a_sense_is_told_with_both_values_and_its_interval(tmp_path):
    run = run_of(tmp_path, conditioned("root"), conditioned("nog", wide=0.01, ridged=30))
    said = found(run, CLAIMS[0]).sentences
    assert said[0].startswith("Condition on the range: 1.0e5 becomes 1003, 0.01 times (95 %: ")
    assert said[0].endswith("better conditioned.")
    assert said[1].startswith("Condition with the ridge: 1003 becomes 3.0e4, 30 times")
    assert said[1].endswith("worse conditioned.")


def test_a_change_with_the_ridge_that_is_scale_alone_is_called_so(tmp_path):
    run = run_of(tmp_path, conditioned("root"), conditioned("nog", ridged=30))
    assert "against a fixed ridge, not the shape" in found(run, CLAIMS[0]).sentences[-1]
    shaped = conditioned("nog", ridged=30)
    for seed in shaped.seeds:
        seed.rows["condition"][0]["largest"] = 10.0
    said = found(run_of(tmp_path, conditioned("root"), shaped), CLAIMS[0]).sentences[-1]
    assert said.startswith("The largest eigenvalue changes 0.99")
    assert "fixed ridge" not in said
    relative = conditioned("nog", ridged=30)
    for seed in relative.seeds:
        seed.rows["condition"][0]["ridge"] = 0.3
    said = found(run_of(tmp_path, conditioned("root"), relative), CLAIMS[0]).sentences[-1]
    assert "fixed ridge" not in said


@pytest.mark.parametrize(
    ("errors", "verdict", "tone", "side"),
    [
        ((9.0, 11.1, 13.0), "yes, 0.97 points less error", "good", "outside"),
        ((11.0, 13.1, 15.0), "no, 1.03 points more error", "bad", "outside"),
        ((9.9, 12.2, 13.9), "inside the spread", "unclear", "inside"),
    ],
)
def test_the_verdict_on_accuracy_flips_with_the_numbers(tmp_path, errors, verdict, tone, side):
    run = run_of(tmp_path, conditioned("root"), conditioned("nog", errors))
    finding = found(run, CLAIMS[2])
    assert (finding.verdict, finding.tone) == (verdict, tone)
    assert "paired over 3 seeds (95 %: " in finding.sentences[0]
    assert finding.sentences[0].endswith(f"{side} the spread between seeds.")


def test_a_single_seed_gives_no_verdict(tmp_path):
    run = run_of(tmp_path, conditioned("root", (10.0,)), conditioned("nog", (5.0,), wide=0.1))
    for claim in (CLAIMS[0], CLAIMS[2]):
        finding = found(run, claim)
        assert finding.verdict == "one seed only"
        assert "nobody can say" in finding.sentences[0]
        assert "side the spread" not in " ".join(finding.sentences)


def test_an_infinite_condition_is_not_compared(tmp_path):
    ours = conditioned("nog", wide=0.1, ridged=0.1, single=0.1)
    ours.seeds[1].rows["condition"][0]["condition_float64"] = None
    finding = found(run_of(tmp_path, conditioned("root"), ours), CLAIMS[0])
    assert (
        "Condition naive, float64: not finite in 1 of 3 seeds, so not compared."
        in finding.sentences
    )
    assert finding.verdict == "yes, in all 3 senses"


def test_a_variant_that_was_not_run_is_named(tmp_path):
    run = run_of(tmp_path, conditioned("root"), conditioned("nog"))
    by_title = {finding.title: finding for finding in findings(run)}
    assert set(CLAIMS) <= set(by_title)
    assert by_title[CLAIMS[1]].verdict == "not measured"
    assert by_title[CLAIMS[1]].sentences == ("No finished seed of OLR alone, so nothing is said.",)
    said = by_title[CLAIMS[4]].sentences[0]
    assert "NOG with the norm fixed and of the root with the norm fixed" in said


@pytest.mark.parametrize(
    ("free", "held", "verdict"),
    [
        (LESS, LESS, "still better in all 2 senses"),
        (LESS, {"wide": 0.1}, "still better in 1 of 2 senses"),
        ({"ridged": 0.1}, {}, "nothing beyond the spread"),
        ({"ridged": 0.1}, {"wide": 0.1}, "better, but in no sense that it improved before"),
        (LESS, {"wide": 0.1, "double": 0.1}, "still better in 1 of 2 senses"),
        ({}, {}, "no better, norm free or fixed"),
        ({}, {"wide": 0.1}, "better in 1 of 4 senses, only when fixed"),
    ],
)  # fmt: skip
def test_what_is_left_with_the_norm_fixed(tmp_path, free, held, verdict):
    run = run_of(
        tmp_path,
        conditioned("root"),
        conditioned("nog", **free),
        conditioned("fixed"),
        conditioned("nog-fixed", (9.0, 11.1, 13.0), **held),
    )
    finding = found(run, CLAIMS[4])
    assert finding.verdict.startswith(verdict)
    assert "; with the norm free" in finding.sentences[0]
    assert "against FIXED" in finding.sentences[-1]


def combination(tmp_path, errors, **change):
    run = run_of(
        tmp_path,
        conditioned("root"),
        conditioned("nog", (10.0, 12.1, 14.0)),
        conditioned("ow", (11.0, 13.1, 15.0), wide=0.5),
        conditioned("nog-ow", errors, **change),
    )
    return found(run, "What does NOG-OW add to its parts?")


def test_a_combination_adds_only_what_no_part_has(tmp_path):
    both = combination(tmp_path, (8.0, 10.1, 12.1), wide=0.1)
    assert both.verdict == "accuracy and conditioning in 1 of 4 senses"
    assert both.sentences[0].startswith("Test error: -1.97 points against NOG (outside")
    assert both.sentences[1].startswith("Better conditioned than every part: on the range.")
    between = combination(tmp_path, (10.5, 12.6, 14.6), wide=0.7)
    assert between.verdict == "more error than 1 of 2 parts"
    assert "in no sense. Worse than at least one part: on the range" in between.sentences[1]
    nothing = combination(tmp_path, (10.1, 12.0, 14.2), wide=0.7)
    assert (nothing.verdict, nothing.tone) == ("nothing beyond the spread", "unclear")
    dear = combination(tmp_path, (12.0, 14.1, 16.2), wide=0.1)
    assert dear.verdict == "conditioning in 1 of 4 senses, at more error than 2 of 2 parts"


def test_how_the_optimal_rate_acts_is_counted(tmp_path):
    row = {"step": 1, "method": "optimal_learning_rate", "lr": 0.1, "cosine": -0.02}
    rows = [{**row, "eta": 0.002, "used": True}, *[{**row, "eta": None, "used": False}] * 3]
    run = run_of(tmp_path, conditioned("root"), treated("olr", [1.0], title="OLR", methods=rows))
    assert found(run, "How does OLR act?").sentences == (
        "OLR: used in 25.0 % of the recorded steps; where used, its median is 0.02 times the "
        "scheduled rate; the median of |cos(w, l)| is 0.02.",
    )


def test_the_sense_that_changes_a_verdict_is_named(tmp_path):
    change = {"wide": 0.1, "ridged": 0.1, "single": 0.1, "double": 9}
    batch_norm = conditioned("", ridged=1e-3)
    run = run_of(tmp_path, batch_norm, conditioned("root"), conditioned("nog", **change))
    title = "Which sense of condition changes the verdict?"
    finding = found(run, title)
    assert finding.verdict == "the sense decides for 1 of 1 variants"
    assert "Naive, float64: another verdict than on the range for NOG." in finding.sentences
    assert "With the ridge: the same verdicts." in finding.sentences
    said = " ".join(finding.sentences)
    assert "numerical rank 27 of 64" in said
    assert "eigenvalues that are rounding: 1.0e9 in float32 and 1.0e16 in float64" in said
    # The ridge of the batch norm is another one, so its lowest number wins nothing.
    assert "on the range NOG (1.0e4); with the ridge NOG (100)" in said
    assert "naive, float64 ROOT (1.0e16)" in said
    change["double"] = 0.1
    agreed = found(run_of(tmp_path, conditioned("root"), conditioned("nog", **change)), title)
    assert agreed.verdict == "the sense decides for 0 of 1 variants"


def test_without_a_verdict_on_the_range_no_sense_changes_it(tmp_path):
    run = run_of(tmp_path, conditioned("root", (1.0,)), conditioned("nog", (1.0,), wide=0.1))
    finding = found(run, "Which sense of condition changes the verdict?")
    assert finding.verdict == "no verdict on the range to differ from"
    assert "same verdicts" not in " ".join(finding.sentences)


def test_a_full_rank_is_not_called_rounding(tmp_path):
    root, ours = conditioned("root"), conditioned("nog")
    for seed in root.seeds:
        seed.rows["condition"][0]["rank"] = 64
    said = found(run_of(tmp_path, root, ours), "Which sense of condition changes the verdict?")
    assert "rounding" not in " ".join(said.sentences)


def test_the_layer_and_the_older_treatments_are_told(tmp_path):
    run = run_of(
        tmp_path,
        conditioned("", (9.0, 11.1, 13.0)),
        conditioned("root"),
        conditioned("sn", (12.0, 14.1, 16.0), ridged=0.1),
    )
    layer = found(run, "ROOT against baseline")
    assert layer.sentences[0].startswith("+0.97 points against baseline")
    older = found(run, "The older treatments against ROOT")
    assert older.sentences[0].startswith("SN: +2.03 points against ROOT (outside the spread)")
    assert "conditioning better with the ridge" in older.sentences[0]


def test_nothing_finished_says_nothing(write_spectral):
    folder = write_spectral(names=["bn", "zca"], seeds=[0], steps=10)
    for file in folder.glob("variants/*/*/result.json"):
        file.unlink()
    assert findings(load_run(folder)) == []


def test_turning_an_effect_around_turns_the_verdicts_around(write_spectral):
    names = ["bn", "zca", "nog"]
    better = Effect(error=-2.0, range_decades=-2.0, scale_decades=-1.0)
    worse = Effect(error=2.0, range_decades=2.0, scale_decades=1.0)
    verdicts = []
    for name, effect in (("better", better), ("worse", worse)):
        folder = write_spectral(name=name, names=names, effects={"nog": effect}, noise=0.3)
        run = load_run(folder)
        verdicts.append([found(run, CLAIMS[0]), found(run, CLAIMS[2])])
    for good, bad in zip(*verdicts, strict=True):
        assert "yes" in good.verdict
        assert bad.verdict.startswith("no, ")
