"""The sentences say what the numbers say, whichever way they point."""

import pytest

from orthotrain.lab.report.findings import compare_accuracy, findings
from orthotrain.lab.report.load import Run, SeedRun, Variant, load_run

KINDS = ("step", "eval", "size", "rank", "stability", "event")
RESULT = {
    "test_accuracy": 0.9,
    "trainable": 1000,
    "stored": 1000,
    "stored_folded": 1000,
    "dense": 1000,
    "step_ms_final": 10.0,
    "seconds": 100.0,
    "training_bytes": 2**20,
}


def variant(name, accuracies, *, ranks=(), **result):
    seeds = tuple(
        SeedRun(
            seed,
            {kind: list(ranks) if kind == "rank" else [] for kind in KINDS},
            {**RESULT, "test_accuracy": accuracy, **result},
        )
        for seed, accuracy in enumerate(accuracies)
    )
    return Variant(name, name, "", seeds, len(seeds))


def run(tmp_path, *variants):
    return Run(tmp_path, "run", {}, None, variants, ())


def said(the_run, title):
    return " ".join(next(f.sentences for f in findings(the_run) if f.title == title))


def test_a_difference_within_the_root_of_summed_variances_is_inside():
    # Means 0.90 and 0.91, deviations 1 point each: the spread of the difference is 1.41.
    dense, ours = variant("dense", [0.89, 0.90, 0.91]), variant("x", [0.90, 0.91, 0.92])
    assert compare_accuracy(ours, dense) == (
        "+1.00 ± 1.41 points against dense, inside the spread between seeds"
    )


def test_a_difference_beyond_it_is_outside_in_both_directions():
    dense, ours = variant("dense", [0.89, 0.90, 0.91]), variant("x", [0.94, 0.95, 0.96])
    assert compare_accuracy(ours, dense).startswith("+5.00 ± 1.41 points against dense, outside")
    assert compare_accuracy(dense, ours).startswith("-5.00 ± 1.41 points against x, outside")


def test_a_single_seed_is_never_called_inside_or_outside():
    compared = compare_accuracy(variant("x", [0.95]), variant("dense", [0.8, 0.81]))
    assert "single seed" in compared
    assert "side" not in compared


def test_without_an_accuracy_nothing_is_compared():
    assert compare_accuracy(variant("x", [None]), variant("dense", [0.8])) == ""


@pytest.mark.parametrize(
    ("ms", "word"), [(5.0, "shorter than"), (20.0, "longer than"), (10.1, "about as long as")]
)
def test_time_is_compared_in_both_directions(tmp_path, ms, word):
    ours = variant("x", [0.9, 0.91], step_ms_final=ms, seconds=10 * ms)
    sentence = said(run(tmp_path, variant("dense", [0.9, 0.91]), ours), "x")
    assert f"a step takes {ms:.2f} ± 0.00 ms, {word} the dense network's 10.00" in sentence
    assert f"({ms / 10:.2f} times); the whole training took {ms / 10:.2f} times" in sentence


def test_storing_more_than_dense_is_said(tmp_path):
    more = variant("x", [0.9, 0.91], trainable=410, stored=1780, stored_folded=1500)
    less = variant("y", [0.9, 0.91], trainable=60, stored=490)
    the_run = run(tmp_path, variant("dense", [0.9, 0.91]), more, less)
    assert "41.0 % of the dense network's numbers to train and stores 178.0 %" in said(the_run, "x")
    assert "(150.0 % after folding). So it stores more than the dense" in said(the_run, "x")
    assert "stores more" not in said(the_run, "y")


def rank_row(layer, rank, form):
    return {"step": 1, "layer": layer, "rank": rank, "full_rank": 10, "form": form}


def test_the_rival_is_compared_at_its_size(tmp_path):
    ranks = [rank_row("a", 2, "factored"), rank_row("b", 6, "factored"), rank_row("c", 10, "dense")]
    ours = variant("low", [0.90, 0.92], ranks=ranks, stored=510, step_ms_final=6.0)
    dense = variant("dense", [0.9, 0.91])
    equal = variant("narrow", [0.95, 0.97], stored=500, step_ms_final=4.0)
    sentence = said(run(tmp_path, dense, ours, equal), "low")
    assert "Against the rival: -5.00 ± 2.00 points against narrow, outside" in sentence
    assert "while storing 1.02 times as much. A step at the end takes 1.50 times" in sentence
    assert "2 of 3 layers end in low-rank form, from 20 % of the full rank (a) to 60 %" in sentence
    smaller = variant("narrow", [0.95, 0.97], stored=255)
    sentence = said(run(tmp_path, dense, ours, smaller), "low")
    assert "2.00 times as much, so not at the same size" in sentence


def test_cuts_after_which_the_loss_jumped_are_told(tmp_path):
    factored = [{"step": 9, "layer": "up", "rank": 2, "full_rank": 4, "form": "factored"}]
    calm, hurt = variant("calm", [0.9], ranks=factored), variant("hurt", [0.9], ranks=factored)
    hurt.seeds[0].rows["event"].append({"step": 9, "event": "loss_jump", "layer": "up"})
    hurt.seeds[0].rows["event"].append({"step": 9, "event": "update"})
    both = run(tmp_path, calm, hurt)
    assert "jumped after 1 cuts, and the next cut had to wait: up." in said(both, "hurt")
    assert "jumped" not in said(both, "calm")


def test_layers_that_stay_dense_are_not_called_low_rank(tmp_path):
    ranks = [rank_row("a", 5, "factored"), {**rank_row("a", 10, "dense"), "step": 2}]
    ours = variant("low", [0.9, 0.92], ranks=ranks)
    assert "No layer is in low-rank form at the end." in said(run(tmp_path, ours), "low")


def test_without_dense_nothing_is_compared_with_it(tmp_path):
    sentence = said(run(tmp_path, variant("x", [0.9, 0.91])), "x")
    assert "against" not in sentence
    assert "It ends with 100.0 %" in sentence


def test_stability_is_told_with_its_doubt(finished_run):
    sentence = said(load_run(finished_run), "Basis stability of dense")
    assert "at 5 % of training" in sentence
    assert "or because the learning rate falls" in sentence
