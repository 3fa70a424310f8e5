"""One comparison in words: the numbers, their spread, and what the seeds allow to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from orthotrain.lab.report.findings import Tone
from orthotrain.lab.report.load import Variant
from orthotrain.lab.report.paired import Measure, Paired, over_seeds
from orthotrain.lab.report.spectral.tables import interval, short

TOLD: Final = ("lower", "higher", "inside")
ENDS: Final = {
    "lower": "better conditioned",
    "higher": "worse conditioned",
    "inside": "inside the spread between seeds",
    "single": "with a single seed nobody can say whether that is more than chance",
}


def error_sentence(paired: Paired) -> str:
    """``-0.14 ± 0.10 points of test error against ZCA alone, ...``; "" where unknown."""
    mean, std = paired.difference.mean, paired.difference.std
    if not paired.count:
        return ""
    if paired.outcome == "single":
        return (
            f"{mean:+.2f} points of test error against {paired.other.title}; with a single seed "
            "nobody can say whether that is more than chance"
        )
    side = "inside" if paired.outcome == "inside" else "outside"
    return (
        f"{mean:+.2f} ± {std:.2f} points of test error against {paired.other.title}, paired over "
        f"{paired.count} seeds (95 %: {interval(paired)}), {side} the spread between seeds"
    )


def sense_sentence(paired: Paired) -> str:
    """Both values of one condition, their ratio, and what the seeds allow to say."""
    title = paired.measure.title
    if paired.outcome == "infinite":
        seeds = f"{paired.infinite} of {paired.infinite + paired.count} seeds"
        return f"Condition {title}: not finite in {seeds}, so not compared."
    ours, other = (_mean(v, paired.measure) for v in (paired.ours, paired.other))
    return (
        f"Condition {title}: {short(other)} becomes {short(ours)}, {times(paired)}: "
        f"{ENDS[paired.outcome]}."
    )


def _mean(variant: Variant, measure: Measure) -> float:
    spread = over_seeds(variant, measure)
    return 10**spread.mean if spread else math.nan


def times(paired: Paired) -> str:
    """The ratio with its 95 % interval."""
    if paired.count < 2:
        return f"{short(paired.ratio)} times"
    return f"{short(paired.ratio)} times (95 %: {interval(paired)})"


def senses_in_words(outcomes: Sequence[Paired]) -> str:
    """``better conditioned on the range; worse with the ridge``; "" where nothing is told."""
    said = []
    for outcome, words in (("lower", "better"), ("higher", "worse"), ("inside", "inside")):
        titles = [paired.measure.title for paired in outcomes if paired.outcome == outcome]
        if titles:
            said.append(f"{words} {_listed(titles)}")
    return "; ".join(said).replace("inside ", "inside the spread ")


def _listed(titles: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; a title with a comma in it loses the comma."""
    plain = [title.replace(", ", " ") for title in titles]
    return " and ".join([", ".join(plain[:-1]), plain[-1]] if len(plain) > 1 else plain)


def error_in_short(paired: Paired) -> str:
    """``-0.14 points against ZCA alone (inside the spread)``; "" where unknown."""
    if not paired.count:
        return ""
    side = {"single": "one seed only", "inside": "inside the spread"}.get(paired.outcome)
    return (
        f"{paired.difference.mean:+.2f} points against {paired.other.title} "
        f"({side or 'outside the spread'})"
    )


def senses_count(count: int, known: int) -> str:
    """``all 4 senses``, ``2 of 4 senses``, ``the one sense``."""
    if known == 1:
        return "the one sense" if count else "no sense"
    return f"all {known} senses" if count == known else f"{count} of {known} senses"


def senses_verdict(outcomes: Sequence[Paired]) -> tuple[str, Tone]:
    """One answer from the comparisons in up to four senses."""
    told = [paired.outcome for paired in outcomes if paired.outcome in TOLD]
    better, worse, count = told.count("lower"), told.count("higher"), len(told)
    if not told:
        return ("one seed only" if outcomes else "not measured"), "unclear"
    if better == count:
        return f"yes, in {senses_count(count, count)}", "good"
    if worse == count:
        return f"no, worse in {senses_count(count, count)}", "bad"
    if better and worse:
        return f"depends on the sense: {better} better, {worse} worse of {count}", "mixed"
    if better:
        return f"yes in {better} of {count} senses", "mixed"
    if worse:
        return f"no, worse in {worse} of {count} senses", "bad"
    return "inside the spread", "unclear"


def error_verdict(paired: Paired) -> tuple[str, Tone]:
    """One answer from the comparison of test errors."""
    points = f"{abs(paired.difference.mean):.2f} points"
    match paired.outcome:
        case "lower":
            return f"yes, {points} less error", "good"
        case "higher":
            return f"no, {points} more error", "bad"
        case "inside":
            return "inside the spread", "unclear"
        case "single":
            return "one seed only", "unclear"
        case _:
            return "not measured", "unclear"
