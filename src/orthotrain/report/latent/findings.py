"""A verdict on each claim about latent weights, computed from the numbers, whichever way."""

from __future__ import annotations

import math

from orthotrain.report.findings import Finding, Tone
from orthotrain.report.latent.measures import (
    MIN_SEEDS,
    TURNED,
    Score,
    after_training,
    compare,
    fidelity,
    final_deviation,
    find,
    identical,
    main_score,
    named_score,
    rank_correlation,
    reference_of,
    score_of,
    scores_of,
)
from orthotrain.report.latent.tables import verdict_of
from orthotrain.report.load import Run
from orthotrain.report.paired import Paired, over_seeds
from orthotrain.report.spectral.measures import share_used
from orthotrain.report.tables import Spread


def findings(run: Run) -> list[Finding]:
    """A verdict per claim; empty where no variant has a finished seed."""
    main = main_score(run)
    if main is None:
        return []
    said = [
        _better("Does NOG separate the latents better than nothing?", run, main, "nog"),
        _better("Does OLR?", run, main, "olr"),
        _inert(run),
        *_against_rivals(run, main),
        _weight_or_gradient(run, main),
        _rates(run, main),
        _after_training(run, main),
        *_others(run, main),
    ]
    return [finding for finding in said if finding is not None and finding.sentences]


def _better(title: str, run: Run, main: Score, name: str) -> Finding:
    ours, other = find(run, name), find(run, run.baseline_name)
    if ours is None or other is None:
        return Finding(title, ("One of the two has no finished seed.",), "not measured")
    paired, sentences = compare(ours, other, main), []
    sentences.append(sentence(paired, main))
    near = fidelity(run)
    beside = None if near is None else compare(ours, other, near)
    if near is not None and beside is not None and beside.count:
        sentences.append(sentence(beside, near))
    return Finding(title, tuple(sentences), *_verdict(paired, main, beside, near))


def _verdict(
    paired: Paired, main: Score, beside: Paired | None, near: Score | None
) -> tuple[str, Tone]:
    """Better counts only with enough seeds, and beside what it did to fidelity."""
    word = verdict_of(paired, main)
    if word not in ("better", "worse"):
        return word, "unclear"
    if paired.count < MIN_SEEDS:
        return f"{word}, but of fewer than {MIN_SEEDS} seeds: no winner is named", "unclear"
    if word == "worse":
        return "no, worse", "bad"
    if near is None or beside is None or not beside.count:
        return "yes; fidelity not measured", "mixed"
    other = verdict_of(beside, near)
    if other == "worse":
        return "yes, at worse fidelity", "mixed"
    return (
        "yes, at better fidelity" if other == "better" else "yes; fidelity not told apart"
    ), "good"


def sentence(paired: Paired, score: Score) -> str:
    """Both values, their difference, and what the seeds allow to say."""
    if not paired.count:
        return f"{score.title}: not measured in the same seed of both."
    digits = score.digits
    ours, theirs = (over_seeds(v, score.measure) for v in (paired.ours, paired.other))
    said = (
        f"{score.title}: {paired.ours.title} {ours.show(digits)}, {paired.other.title} "
        f"{theirs.show(digits)}, difference {paired.difference.mean:+.{digits}f}"
    )
    low, high = paired.interval
    if math.isnan(low):
        return f"{said}; a single seed says nothing about chance."
    word = {"better": "better", "worse": "worse"}.get(verdict_of(paired, score))
    tail = "inside the spread" if paired.outcome == "inside" else f"outside the spread, {word}"
    if word is None and paired.outcome != "inside":
        tail = f"outside the spread, {paired.outcome}"
    return f"{said} (95 %: {low:+.{digits}f} to {high:+.{digits}f}), {tail}."


def _against_rivals(run: Run, main: Score) -> list[Finding]:
    """NOG and OLR as trained against every other way to separate coordinates."""
    baseline = find(run, run.baseline_name)
    rivals = [find(run, name) for name in ("ol", "hessian", "orojar", "vp")]
    if baseline is not None:
        rivals += [after_training(baseline, main, end) for end in ("_sefa", "_householder")]
    said = []
    for name in ("nog", "olr"):
        ours = find(run, name)
        pairs = [compare(ours, rival, main) for rival in rivals if ours and rival]
        pairs = [paired for paired in pairs if paired.count]
        if ours is None or not pairs:
            continue
        if min(paired.count for paired in pairs) < MIN_SEEDS:
            verdict = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
        else:
            words = [verdict_of(paired, main) for paired in pairs]
            verdict = (
                f"better than {words.count('better')} of {len(pairs)}, "
                f"worse than {words.count('worse')}"
            )
        title = f"Is {ours.title} better than its rivals?"
        said.append(
            Finding(title, tuple(sentence(paired, main) for paired in pairs), verdict, "unclear")
        )
    return said


def _inert(run: Run) -> Finding:
    """How often OLR acted, and whether anything came of it."""
    title = "Does OLR do anything under Adam?"
    sentences, acted = [], None
    for name, other_name in (("olr", run.baseline_name), ("olr-sgd", f"{run.baseline_name}-sgd")):
        ours, other = find(run, name), find(run, other_name)
        if ours is None or other is None:
            continue
        used = Spread.of(100 * share_used(seed) for seed in ours.finished)
        same = identical(ours, other, scores_of(run))
        what = (
            "the scores are those of nothing done, to the last digit"
            if same
            else "its scores differ from those of nothing done"
        )
        sentences.append(f"{ours.title}: used in {used.show(2)} % of the recorded steps; {what}.")
        if name == "olr":
            acted = used.mean > 0
    if acted is None:
        return Finding(title, tuple(sentences), "not measured" if sentences else "")
    verdict = "it acts" if acted else "no: it was never seen to act"
    return Finding(title, tuple(sentences), verdict, "mixed" if acted else "bad")


def _weight_or_gradient(run: Run, main: Score) -> Finding | None:
    """Treatments of the weight and of the gradient, beside nothing done."""
    title = "Is it the orthogonality of the weight, not of the gradient?"
    baseline = find(run, run.baseline_name)
    if baseline is None:
        return None
    words: dict[str, list[str]] = {"weight": [], "gradient": []}
    sentences, few = [], False
    for kind, names in (("weight", ("ol", "retraction")), ("gradient", ("nog", "nog-update"))):
        for name in names:
            variant = find(run, name)
            if variant is None:
                continue
            paired = compare(variant, baseline, main)
            few |= paired.count < MIN_SEEDS
            words[kind].append(verdict_of(paired, main))
            sentences.append(f"Of the {kind}: {sentence(paired, main)}")
    both, held = find(run, "nog-retraction"), find(run, "retraction")
    if both is not None and held is not None:
        sentences.append(f"Gradient on top of weight: {sentence(compare(both, held, main), main)}")
    sentences += _correlated(run, main)
    if not all(words.values()):
        return Finding(title, tuple(sentences), "not measured" if sentences else "")
    if few:
        verdict = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
        return Finding(title, tuple(sentences), verdict, "unclear")
    weight, gradient = ("better" in words[kind] for kind in ("weight", "gradient"))
    answers: dict[tuple[bool, bool], tuple[str, Tone]] = {
        (True, False): ("yes: only treatments of the weight are better than nothing", "good"),
        (True, True): ("both are better than nothing in some treatment", "mixed"),
        (False, True): ("no: only treatments of the gradient are better", "bad"),
        (False, False): ("neither is better than nothing", "unclear"),
    }
    return Finding(title, tuple(sentences), *answers[weight, gradient])


def _correlated(run: Run, main: Score) -> list[str]:
    """How far the score goes with the deviation of the weight, whatever was done to it."""
    pairs = [
        (final_deviation(seed), score_of(seed, main.key))
        for variant in run.variants
        if not variant.name.endswith("-sgd")
        for seed in variant.finished
    ]
    known = [pair for pair in pairs if not any(map(math.isnan, pair))]
    found = rank_correlation(known)
    if math.isnan(found):
        return []
    return [
        f"Over {len(known)} trainings with Adam the rank correlation of |U U^T - I| at the end "
        f"with the score is {found:+.2f}."
    ]


def _rates(run: Run, main: Score) -> Finding | None:
    """NOG changes the norm of the gradient, so it is held against nothing at three rates each."""
    pairs = [
        (ours, other)
        for suffix in ("", *sorted({v.name[3:] for v in run.variants if "nog-lr" in v.name}))
        if (ours := find(run, f"nog{suffix}")) and (other := find(run, f"none{suffix}"))
    ]
    if len(pairs) < 2:
        return None
    at_each = [compare(ours, other, main) for ours, other in pairs]
    best, untreated = (
        max(tried, key=lambda v: over_seeds(v, main.measure).mean)
        for tried in zip(*pairs, strict=True)
    )
    of_best = compare(best, untreated, main)
    near = fidelity(run)
    beside = () if near is None else (sentence(compare(best, untreated, near), near),)
    words = {verdict_of(paired, main) for paired in at_each}
    verdict = "the same at every rate" if len(words) == 1 else "depends on the rate"
    verdict = f"{verdict}; at the best rate of each: {verdict_of(of_best, main)}"
    if min(paired.count for paired in (*at_each, of_best)) < MIN_SEEDS:
        verdict = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
    return Finding(
        "Does the learning rate decide what NOG does?",
        (
            *(sentence(paired, main) for paired in at_each),
            f"The best rate of each, chosen by these seeds: {sentence(of_best, main)}",
            *beside,
        ),
        verdict,
        "unclear" if len(words) == 1 else "mixed",
    )


def _after_training(run: Run, main: Score) -> Finding | None:
    """What is found without any treatment, and whether a treatment is better than that."""
    baseline = find(run, run.baseline_name)
    if baseline is None:
        return None
    untreated = {
        what: over_seeds(baseline, score.measure)
        for suffix, what in TURNED.items()
        if (score := named_score(run, main.key + suffix)) is not None
    }
    sefa = untreated.get(TURNED["_sefa"])
    if not sefa:
        return None
    best = max(
        (v for v in run.variants if v.finished and not v.name.endswith("-sgd")),
        key=lambda v: over_seeds(v, main.measure).mean,
    )
    own = over_seeds(best, main.measure)
    after = named_score(run, f"{main.key}_sefa")
    assert after is not None
    as_trained = f"{over_seeds(baseline, main.measure).show(main.digits)} as trained"
    turned = (f"{spread.show(main.digits)} {what}" for what, spread in untreated.items())
    sentences = [
        f"{baseline.title}: {', '.join((as_trained, *turned))}.",
        f"The best as trained is {best.title}, {own.show(main.digits)}; after SeFa it has "
        f"{over_seeds(best, after.measure).show(after.digits)}.",
    ]
    turned_baseline = after_training(baseline, main, "_sefa")
    assert turned_baseline is not None
    paired = compare(best, turned_baseline, main)
    sentences.append(sentence(paired, main))
    enough = verdict_of(paired, main) != "better"
    verdict = (
        "nothing is better than SeFa on nothing done"
        if enough
        else "no: the best treatment is above SeFa on nothing done"
    )
    if min(len(baseline.finished), len(best.finished)) < MIN_SEEDS:
        verdict = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
    title = "Is SeFa after training enough?"
    return Finding(title, tuple(sentences), verdict, "mixed" if enough else "unclear")


def _others(run: Run, main: Score) -> list[Finding]:
    """Everything else in one block, against nothing done with the same optimizer."""
    told = {"nog", "olr", "ol", "retraction", "nog-update", "nog-retraction"}
    sentences = []
    for variant in run.variants:
        other = reference_of(run, variant)
        if other is None or not variant.finished or variant.name in told:
            continue
        if "-lr" not in variant.name:
            sentences.append(sentence(compare(variant, other, main), main))
    return [Finding("Everything else", tuple(sentences))]
