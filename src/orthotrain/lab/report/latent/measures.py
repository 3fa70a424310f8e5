"""What a run of generators measured: its scores, and which way each is better."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.paired import Measure, Paired, paired_by_seed
from orthotrain.lab.report.rows import number
from orthotrain.lab.report.tables import Spread

#: Share of the spread of a factor in real images below which its interventions are not scored.
LEAST_SPREAD: Final = 0.5
# A generator that hardly moves has a short path, and nothing to tell coordinates by.
_NEED_SPREAD: Final = ("disentanglement", "completeness", "vp", "ppl", "encoder_r2")
#: Below this many seeds nobody is called better than another.
MIN_SEEDS: Final = 5


@dataclass(frozen=True)
class Score:
    """One score of a generator.

    Attributes:
        key: Its name in ``result.json``.
        title: What the page calls it.
        better: 1 where more is better, -1 where less is, 0 where neither is.
        digits: Decimals shown.
    """

    key: str
    title: str
    better: int
    digits: int = 3

    @property
    def measure(self) -> Measure:
        """The score of one finished seed."""
        return Measure(self.key, self.title, lambda seed: score_of(seed, self.key), False)


_KNOWN: Final = (
    Score("alignment", "Alignment with the true directions", 1),
    Score("disentanglement", "Disentanglement by intervention", 1),
    Score("completeness", "Completeness by intervention", 1),
    Score("factor_spread", "Least spread of a factor over that in real images", 0),
    Score("vp", "Variation predictability", 1),
    Score("mig", "MIG", 1),
    Score("dci_disentanglement", "DCI disentanglement", 1),
    Score("factor_vae", "FactorVAE score", 1),
    Score("beta_vae", "beta-VAE score", 1),
    Score("sap", "SAP", 1),
    Score("modularity", "Modularity", 1),
    Score("encoder_r2", "R^2 of the encoder behind the six", 0),
    Score("ppl", "Path length in pixels (PPL)", -1, 0),
    Score("frechet", "Frechet distance", -1),
    Score("frechet_classifier", "Frechet distance, features of a classifier", -1),
    Score("coverage", "Coverage", 1),
    Score("orthonormality_error", "|U U^T - I|", 0),
)
#: What can be done to the latent of a trained generator, by the end of a score's key.
TURNED: Final = {
    "_sefa": "after SeFa",
    "_householder": "after the Householder projector",
    "_rotated": "latents rotated at random",
}
#: What a score is read against, by the end of its key.
LEVELS: Final = {"_chance": "chance", "_floor": "real against real"}
# Of these, the images are others than those of the training.
_PROJECTED: Final = ("_householder",)
#: What the verdicts are about, fixed before any run: the first of these that a run has.
_MAIN: Final = ("alignment", "disentanglement", "vp")
_FIDELITY: Final = "frechet"


def score_of(seed: SeedRun, key: str) -> float:
    """A score of a finished seed; NaN where it has none, or its images hardly vary."""
    own = next((end for end in _PROJECTED if key.endswith(end)), "")
    needs = key.startswith(_NEED_SPREAD) and not key.endswith(tuple(LEVELS))
    if needs and hardly_varies(seed, own):
        return math.nan
    scores = seed.result.get("scores") if seed.result is not None else None
    return number(scores, key) if isinstance(scores, dict) else math.nan


def hardly_varies(seed: SeedRun, projected: str = "") -> bool:
    """Whether a factor has less than half of its spread in real images.

    Which coordinate moves a factor says nothing where the factor does not move.

    Args:
        seed: A finished training.
        projected: The end of the keys of a generator that was trained on after it.
    """
    return score_of(seed, f"factor_spread{projected}") < LEAST_SPREAD


def scores_of(run: Run) -> tuple[Score, ...]:
    """The scores of generators as trained that any seed has: known ones first, then the others."""
    found = _keys(run)
    known = [score for score in _KNOWN if score.key in found]
    others = [key for key in found if key not in {score.key for score in _KNOWN}]
    others = [key for key in others if not key.endswith((*TURNED, *LEVELS))]
    return (*known, *(Score(key, key.replace("_", " "), 0) for key in others))


def turned_scores_of(run: Run) -> tuple[Score, ...]:
    """The same of latents turned after training, as :data:`TURNED` lists it, score by score."""
    found = _keys(run)
    return tuple(
        replace(score, key=score.key + suffix, title=f"{score.title}, {what}")
        for score in scores_of(run)
        for suffix, what in TURNED.items()
        if score.key + suffix in found
    )


def _keys(run: Run) -> dict[str, None]:
    found: dict[str, None] = {}
    for variant in run.variants:
        for seed in variant.finished:
            scores = seed.result.get("scores") if seed.result is not None else None
            found.update(dict.fromkeys(scores if isinstance(scores, dict) else ()))
    return found


def level_of(run: Run, score: Score) -> Spread:
    """What a score is read against, chance or real images, over all trainings; empty without."""
    return Spread.of(
        score_of(seed, score.key + end)
        for variant in run.variants
        for seed in variant.finished
        for end in LEVELS
    )


def main_score(run: Run) -> Score | None:
    """The score that says how far the latents are separated."""
    by_key = {score.key: score for score in scores_of(run)}
    return next((by_key[key] for key in _MAIN if key in by_key), None)


def named_score(run: Run, key: str) -> Score | None:
    """A score by its key, where the run has it."""
    every = (*scores_of(run), *turned_scores_of(run))
    return next((score for score in every if score.key == key), None)


def fidelity(run: Run) -> Score | None:
    """The score that says how near the samples are to the data."""
    return named_score(run, _FIDELITY)


def find(run: Run, name: str) -> Variant | None:
    """The variant of this name, where it has a finished seed."""
    return next((v for v in run.variants if v.name == name and v.finished), None)


def compare(ours: Variant, other: Variant, score: Score) -> Paired:
    """Compare one score by seed."""
    return paired_by_seed(ours, other, score.measure)


def is_control(name: str) -> bool:
    """Whether a variant is another with another learning rate or optimizer."""
    return "-lr" in name or name.endswith("-sgd")


def reference_of(run: Run, variant: Variant) -> Variant | None:
    """What a variant is held against: nothing done, with the same optimizer."""
    name = run.baseline_name + ("-sgd" if variant.name.endswith("-sgd") else "")
    found = find(run, name)
    return None if found is variant else found


def after_training(variant: Variant, score: Score, suffix: str) -> Variant | None:
    """A variant whose score is that of its latent turned, see :data:`TURNED`; None without."""
    turned = tuple(
        replace(seed, result={**seed.result, "scores": {**scores, **_turned(scores, suffix)}})
        for seed in variant.finished
        if seed.result is not None
        and isinstance(scores := seed.result.get("scores"), dict)
        and score.key + suffix in scores
    )
    title = f"{variant.title} {TURNED[suffix]}"
    return replace(variant, title=title, seeds=turned) if turned else None


def _turned(scores: dict[str, float], suffix: str) -> dict[str, float]:
    """What is known of the turned latent, by the names of what is not turned."""
    return {k.removesuffix(suffix): v for k, v in scores.items() if k.endswith(suffix)}


def final_deviation(seed: SeedRun) -> float:
    """``|U U^T - I|`` at the end of a training, the mean over layers; NaN without a record."""
    last = {row.get("layer"): number(row, "gram_deviation") for row in seed.rows.get("latent", ())}
    return statistics.fmean(last.values()) if last else math.nan


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's coefficient; NaN for fewer than three pairs or a constant side."""
    if len(pairs) < 3:
        return math.nan
    ranks = [_ranks(side) for side in zip(*pairs, strict=True)]
    try:
        return statistics.correlation(*ranks)
    except statistics.StatisticsError:
        return math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from one, equal values sharing the mean of theirs."""
    ordered = sorted(values)
    return [
        statistics.fmean((bisect_left(ordered, v) + 1, bisect_right(ordered, v))) for v in values
    ]


def identical(ours: Variant, other: Variant, scores: tuple[Score, ...]) -> bool:
    """Whether two variants gave the same scores to the last digit in every seed of both."""
    theirs = {seed.seed: seed for seed in other.finished}
    pairs = [(seed, theirs[seed.seed]) for seed in ours.finished if seed.seed in theirs]
    return bool(pairs) and all(
        score_of(a, score.key) == score_of(b, score.key)
        for a, b in pairs
        for score in scores
        if not (math.isnan(score_of(a, score.key)) and math.isnan(score_of(b, score.key)))
    )
