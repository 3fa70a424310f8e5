"""What a comparison of two variants in one score allows to say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orthotrain.lab.report.findings import Tone
from orthotrain.lab.report.latent.measures import MIN_SEEDS, Score
from orthotrain.lab.report.latent.tables import verdict_of
from orthotrain.lab.report.paired import Paired, over_seeds


def verdict_beside(
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


def sentences_of(pairs: Sequence[Paired], score: Score) -> list[str]:
    """A sentence each; the first names the score."""
    said = [sentence(paired, score) for paired in pairs]
    return [*said[:1], *(one.removeprefix(f"{score.title}: ") for one in said[1:])]


def sentence(paired: Paired, score: Score) -> str:
    """Both values, their difference, and what the seeds allow to say."""
    if not paired.count:
        return (
            f"{score.title}: {paired.ours.title} and {paired.other.title} were not measured in "
            "the same seed."
        )
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
