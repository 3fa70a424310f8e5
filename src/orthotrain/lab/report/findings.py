"""Sentences computed from the numbers of a run, in both directions alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from orthotrain.lab.report.heatmaps import stability_source
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.series import stability_curve
from orthotrain.lab.report.tables import MIB, Spread, final_ranks, over_seeds

# Stored sizes further apart than this are not "the same size" in a comparison with the rival.
_SAME_SIZE: Final = 0.05
# A ratio this close to one is called the same; repeated timings of one layer differ as much.
_SAME_TIME: Final = 0.02


Tone = Literal["good", "bad", "mixed", "unclear"]


@dataclass(frozen=True)
class Finding:
    """What the numbers say about one variant, a pair, or a claim.

    Attributes:
        title: What it is about.
        sentences: The numbers in words.
        verdict: The answer in a few words, for a claim.
        tone: How the page colors the verdict.
    """

    title: str
    sentences: tuple[str, ...]
    verdict: str = ""
    tone: Tone = "unclear"


def findings(run: Run) -> list[Finding]:
    """What a run shows; empty where nothing can be said."""
    said = [
        Finding(variant.title, _about(run, variant))
        for variant in run.variants
        if variant.finished and variant is not run.baseline
    ]
    source = stability_source(run)
    if source is not None:
        said.append(Finding(f"Basis stability of {source.title}", _stability(source)))
    return [finding for finding in said if finding.sentences]


def _about(run: Run, variant: Variant) -> tuple[str, ...]:
    baseline, rival = run.baseline, run.rival
    parts = [_size_sentence(run, variant)]
    if baseline is not None and baseline.finished:
        parts = [
            _accuracy_sentence(variant, baseline),
            *parts,
            _time_sentence(variant, baseline),
            _memory_sentence(variant, baseline),
        ]
    if variant.factored:
        parts += [_rank_sentence(variant), _guard_sentence(variant)]
        if rival is not None and rival.finished:
            parts.append(_rival_sentence(variant, rival))
    return tuple(part for part in parts if part)


def compare_accuracy(ours: Variant, other: Variant) -> str:
    """``+0.12 ± 0.30 points against dense, inside the spread between seeds``; "" if unknown.

    The spread of the difference is the root of the summed variances of the two variants. A
    difference of at most that spread is inside it: these seeds do not tell the two apart.
    """
    a = over_seeds(ours, "test_accuracy", scale=100.0)
    b = over_seeds(other, "test_accuracy", scale=100.0)
    if not a or not b:
        return ""
    difference = a.mean - b.mean
    spread = math.hypot(a.std, b.std)
    if math.isnan(spread):
        return (
            f"{difference:+.2f} points against {other.title}; with a single seed nobody can say "
            "whether that is more than chance"
        )
    verdict = "inside" if abs(difference) <= spread else "outside"
    return (
        f"{difference:+.2f} ± {spread:.2f} points against {other.title}, {verdict} the spread "
        "between seeds"
    )


def _accuracy_sentence(variant: Variant, baseline: Variant) -> str:
    accuracy = over_seeds(variant, "test_accuracy", scale=100.0)
    compared = compare_accuracy(variant, baseline)
    return f"{accuracy.show(2)} % test accuracy, {compared}." if compared else ""


def _size_sentence(run: Run, variant: Variant) -> str:
    scale = 100.0 / run.dense_size
    trainable = over_seeds(variant, "trainable", scale=scale)
    stored = over_seeds(variant, "stored", scale=scale)
    folded = over_seeds(variant, "stored_folded", scale=scale)
    if not trainable or not stored:
        return ""
    said = (
        f"It ends with {trainable.mean:.1f} % of the dense network's numbers to train and stores "
        f"{stored.mean:.1f} %"
    )
    if folded and abs(folded.mean - stored.mean) > 0.05:
        said += f" ({folded.mean:.1f} % after folding)"
    said += "."
    if stored.mean > 100.0:
        said += " So it stores more than the dense network."
    return said


def _guard_sentence(variant: Variant) -> str:
    """Cuts after which the loss jumped, over all seeds; nothing to say where there was none."""
    jumps = [
        str(row.get("layer", "an unnamed layer"))
        for seed in variant.seeds
        for row in seed.rows["event"]
        if row.get("event") == "loss_jump"
    ]
    if not jumps:
        return ""
    layers = ", ".join(sorted(set(jumps)))
    return f"The loss jumped after {len(jumps)} cuts, and the next cut had to wait: {layers}."


def ratio(ours: Spread, other: Spread) -> float:
    """Mean over mean; NaN where either is missing or the other is zero."""
    return ours.mean / other.mean if ours and other and other.mean else math.nan


def _time_sentence(variant: Variant, baseline: Variant) -> str:
    ours, dense = over_seeds(variant, "step_ms_final"), over_seeds(baseline, "step_ms_final")
    value = ratio(ours, dense)
    if math.isnan(value):
        return ""
    if abs(value - 1) <= _SAME_TIME:
        word = "about as long as"
    else:
        word = "shorter than" if value < 1 else "longer than"
    said = (
        f"At the end a step takes {ours.show(2)} ms, {word} the dense network's "
        f"{dense.show(2)} ms ({value:.2f} times)"
    )
    whole = ratio(over_seeds(variant, "seconds"), over_seeds(baseline, "seconds"))
    if not math.isnan(whole):
        said += f"; the whole training took {whole:.2f} times the dense network's"
    return f"{said}."


def _memory_sentence(variant: Variant, baseline: Variant) -> str:
    ours = over_seeds(variant, "training_bytes", scale=1 / MIB)
    value = ratio(ours, over_seeds(baseline, "training_bytes", scale=1 / MIB))
    if math.isnan(value):
        return ""
    return (
        f"Weights, gradients and optimizer state end at {ours.mean:.2f} MiB, {value:.2f} times "
        "the dense network's."
    )


def _rank_sentence(variant: Variant) -> str:
    ranks = final_ranks(variant)
    low = [
        (name, rank.mean / float(str(row["full_rank"])))
        for name, (row, rank) in ranks.items()
        if row.get("form") != "dense" and rank and row.get("full_rank")
    ]
    if not low:
        return "No layer is in low-rank form at the end."
    (least, share), (most, largest) = min(low, key=_second), max(low, key=_second)
    return (
        f"{len(low)} of {len(ranks)} layers end in low-rank form, from {100 * share:.0f} % of the "
        f"full rank ({least}) to {100 * largest:.0f} % ({most})."
    )


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _rival_sentence(variant: Variant, rival: Variant) -> str:
    compared = compare_accuracy(variant, rival)
    size = ratio(over_seeds(variant, "stored"), over_seeds(rival, "stored"))
    if not compared or math.isnan(size):
        return ""
    at = f"while storing {size:.2f} times as much"
    if abs(size - 1) > _SAME_SIZE:
        at += ", so not at the same size"
    time = ratio(over_seeds(variant, "step_ms_final"), over_seeds(rival, "step_ms_final"))
    step = "" if math.isnan(time) else f" A step at the end takes {time:.2f} times the rival's."
    return f"Against the rival: {compared}, {at}.{step}"


def _stability(source: Variant) -> tuple[str, ...]:
    line = stability_curve(source)
    if line is None:
        return ()
    lowest = int(np.argmin(line.mean))
    place = 100 * line.x[lowest] / line.x[-1] if line.x[-1] > 0 else 0.0
    return (
        f"The mean over layers goes from {line.mean[0]:.3f} at the first comparison to "
        f"{line.mean[-1]:.3f} at the last; its lowest value is {line.mean[lowest]:.3f}, at "
        f"{place:.0f} % of training.",
        "Whether the bases settle by themselves or because the learning rate falls, this run "
        "alone does not tell.",
    )
