"""One engine answers every claim, whichever way the numbers point."""

import math

import pytest

from orthotrain.lab.report.claims import Claim, answer, each
from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.stats import Measure

BASE = {"error": (10.0, 12.0, 14.0), "size": (5.0, 5.0, 5.0), "note": (1.0, 1.0, 1.0)}
LESS, SAME, MORE = (9.0, 11.1, 13.0), (9.9, 12.2, 13.9), (11.0, 13.1, 15.0)


def measure(key, better="less"):
    return Measure(key, key.capitalize(), lambda seed: seed.final(key), better=better)


ERROR, SIZE, NOTE = measure("error"), measure("size"), measure("note", better="")


def variant(name, **results):
    values = {**BASE, **results}
    rows = zip(*values.values(), strict=False)
    seeds = tuple(SeedRun(i, {}, dict(zip(values, row, strict=True))) for i, row in enumerate(rows))
    return Variant(name, name.upper(), "", seeds, len(seeds))


def run_of(tmp_path, *variants):
    return Run(tmp_path, "run", {"baseline": "base"}, None, (variant("base"), *variants), ())


@pytest.mark.parametrize(
    ("errors", "verdict", "tone"),
    [
        (LESS, "better", "good"),
        (MORE, "worse", "bad"),
        (SAME, "within the interval", "unclear"),
        (LESS[:2], "undecided: 2 seeds, 3 needed", "unclear"),
        (LESS[:1], "undecided: 1 seed, 3 needed", "unclear"),
        ((math.inf, 1.0, 1.0), "not finite", "unclear"),
    ],
)
def test_a_verdict_flips_with_the_numbers(tmp_path, errors, verdict, tone):
    run = run_of(tmp_path, variant("ours", error=errors))
    found = answer(run, Claim("?", (("ours", "base"),), (ERROR,)))
    assert (found.verdict, found.tone) == (verdict, tone)
    assert len(found.compared) == 1


def test_several_variants_are_named_or_counted(tmp_path):
    run = run_of(tmp_path, variant("a", error=LESS), variant("b", error=MORE), variant("c"))
    found = answer(run, Claim("?", each(run.variants, run.baseline), (ERROR,)))
    assert (found.verdict, found.tone) == ("better (A), worse (B)", "mixed")
    many = [variant(f"v{i}", error=LESS) for i in range(4)]
    run = run_of(tmp_path, *many, variant("c"))
    found = answer(run, Claim("?", each(run.variants, run.baseline), (ERROR,)))
    assert (found.verdict, found.tone) == ("better in 4 of 5", "good")


def test_several_measures_are_named(tmp_path):
    run = run_of(tmp_path, variant("ours", error=LESS, size=(6.0, 6.1, 6.2)))
    found = answer(run, Claim("?", (("ours", "base"),), (ERROR, SIZE)))
    assert (found.verdict, found.tone) == ("better (error), worse (size)", "mixed")


def test_what_stands_beside_decides_nothing_but_is_told_where_it_is_worse(tmp_path):
    claim = Claim("?", (("ours", "base"),), (ERROR,), beside=(SIZE,))
    dear = answer(run_of(tmp_path, variant("ours", error=LESS, size=(6.0, 6.1, 6.2))), claim)
    assert (dear.verdict, dear.tone) == ("better, at a worse size", "mixed")
    same = answer(run_of(tmp_path, variant("ours", error=SAME, size=(6.0, 6.1, 6.2))), claim)
    assert same.verdict == "within the interval"
    assert [paired.measure.key for paired in same.compared] == ["error", "size"]


def test_only_what_is_better_has_a_cost(tmp_path):
    larger = (6.0, 6.1, 6.2)
    run = run_of(tmp_path, variant("a", error=LESS), variant("b", error=SAME, size=larger))
    claim = Claim("?", each(run.variants, run.baseline), (ERROR,), beside=(SIZE,))
    found = answer(run, claim)
    assert (found.verdict, found.tone) == ("better (A)", "good")


def test_a_measure_without_a_better_direction_decides_nothing(tmp_path):
    for note, verdict in (((9.0, 9.1, 9.2), "higher"), (BASE["note"], "within")):
        run = run_of(tmp_path, variant("ours", error=LESS, note=note))
        found = answer(run, Claim("?", (("ours", "base"),), (ERROR, NOTE)))
        assert found.verdict == "better"
        assert [paired.verdict() for paired in found.compared] == ["better", verdict]


def test_missing_variants_are_named_and_derived_ones_are_found(tmp_path):
    idle = Variant("idle", "IDLE", "", (), 3)
    run = run_of(tmp_path, idle)
    claim = Claim("?", (("idle", "base"), ("gone", "base"), ("turned", "base")), (ERROR,))
    found = answer(run, claim, derived=[variant("turned", error=LESS)])
    assert found.missing == ("IDLE", "gone")
    assert found.verdict == "better"
    assert answer(run, Claim("?", claim.pairs[:2], (ERROR,))).verdict == "not measured"


def test_a_variant_with_too_few_seeds_is_not_called_decided(tmp_path):
    run = run_of(tmp_path, variant("a", error=LESS), variant("b", error=LESS[:1]))
    found = answer(run, Claim("?", each(run.variants, run.baseline), (ERROR,)))
    assert found.verdict == "better (A), undecided (B)"


def test_a_claim_may_ask_for_more_seeds(tmp_path):
    run = run_of(tmp_path, variant("ours", error=LESS))
    found = answer(run, Claim("?", (("ours", "base"),), (ERROR,), decide=5))
    assert found.verdict == "undecided: 3 seeds, 5 needed"
