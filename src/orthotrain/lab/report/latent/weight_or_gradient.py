"""The verdict on where orthogonality matters: in the latent weight, or in its gradient."""

from __future__ import annotations

import math
from functools import partial
from typing import Final

from orthotrain.lab.report.findings import Finding, Tone
from orthotrain.lab.report.latent.measures import (
    MIN_SEEDS,
    Score,
    compare,
    fidelity,
    final_deviation,
    find,
    rank_correlation,
    score_of,
)
from orthotrain.lab.report.latent.sentences import sentence, verdict_beside
from orthotrain.lab.report.latent.tables import verdict_of
from orthotrain.lab.report.load import Run

_OF_THE_WEIGHT: Final = ("ol", "retraction")
_OF_THE_GRADIENT: Final = ("nog", "nog-update")


def weight_or_gradient(run: Run, main: Score) -> Finding | None:
    """Treatments of the weight and of the gradient, beside nothing done."""
    title = "Is it the orthogonality of the weight, not of the gradient?"
    baseline = find(run, run.baseline_name)
    if baseline is None:
        return None
    words: dict[str, list[str]] = {"weight": [], "gradient": []}
    sentences, few, near = [], False, fidelity(run)
    for kind, names in (("weight", _OF_THE_WEIGHT), ("gradient", _OF_THE_GRADIENT)):
        for name in names:
            variant = find(run, name)
            if variant is None:
                continue
            paired = compare(variant, baseline, main)
            few |= paired.count < MIN_SEEDS
            beside = None if near is None else compare(variant, baseline, near)
            words[kind].append(verdict_beside(paired, main, beside, near)[0])
            sentences.append(f"Of the {kind}: {sentence(paired, main)}")
            if near is not None and beside is not None and words[kind][-1].startswith("yes"):
                sentences.append(sentence(beside, near))
    direct = [
        compare(of_weight, of_gradient, main)
        for of_weight in map(partial(find, run), _OF_THE_WEIGHT)
        for of_gradient in map(partial(find, run), _OF_THE_GRADIENT)
        if of_weight and of_gradient
    ]
    sentences += [f"Weight against gradient: {sentence(paired, main)}" for paired in direct]
    both, held = find(run, "nog-retraction"), find(run, "retraction")
    if both is not None and held is not None:
        sentences.append(f"Gradient on top of weight: {sentence(compare(both, held, main), main)}")
    sentences += _correlated(run, main)
    if not all(words.values()):
        return Finding(title, tuple(sentences), "not measured" if sentences else "")
    if few:
        answer = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
        return Finding(title, tuple(sentences), answer, "unclear")
    weight, gradient = ([w for w in words[kind] if w.startswith("yes")] for kind in words)
    worse = sum("at worse fidelity" in word for word in (*weight, *gradient))
    more = f", {worse} of {len(weight) + len(gradient)} at worse fidelity" if worse else ""
    answers: dict[tuple[bool, bool], tuple[str, Tone]] = {
        (True, False): ("yes: only treatments of the weight are better than nothing", "good"),
        (True, True): ("both are better than nothing in some treatment", "mixed"),
        (False, True): ("no: only treatments of the gradient are better", "bad"),
        (False, False): ("neither is better than nothing", "unclear"),
    }
    answer, tone = answers[bool(weight), bool(gradient)]
    # One that is told from nothing and one that is not need not be told from each other.
    apart = {verdict_of(paired, main) for paired in direct} & {"better", "worse"}
    if bool(weight) != bool(gradient) and not apart:
        more = f"{more}, but the two are not told apart"
    return Finding(title, tuple(sentences), answer + more, "mixed" if more else tone)


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
