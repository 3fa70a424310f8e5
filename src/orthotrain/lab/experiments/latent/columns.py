"""What the page of generators measures: scores, the latent weight, latents turned after training.

A score says something only beside its level: chance, or real images compared with real ones. Which
coordinate moves a factor says nothing where the factor hardly moves, so such a seed has no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.latent.traversals.gallery import is_control
from orthotrain.lab.experiments.watched import condition, olr_used
from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.measures import (
    PEAK_MEMORY,
    SECONDS,
    group,
    mean,
    raw,
    result,
    step_time,
)
from orthotrain.lab.report.rows import Row, number
from orthotrain.lab.report.stats import MISSING, Better, Measure, Spread
from orthotrain.lab.report.style import DARK, LineStyle, Look, Theme
from orthotrain.lab.report.tables import Cell

# --- scores -------------------------------------------------------------------------------------

#: Share of the spread of a factor in real images below which its interventions are not scored.
LEAST_SPREAD: Final = 0.5
# A generator that hardly moves has a short path, and nothing to tell coordinates by.
_NEED_SPREAD: Final = ("disentanglement", "completeness", "vp", "ppl", "encoder_r2")
#: What can be done to the latent of a trained generator, by the end of a score's key.
TURNED: Final = {
    "_sefa": "SeFa",
    "_householder": "Householder",
    "_rotated": "random rotation",
}
# The images of the projector are its own, so it has a spread of its own.
_PROJECTED: Final = "_householder"
# What a score is read beside, by the end of its key: chance, real images against others.
_LEVELS: Final = ("_chance", "_floor")
# What claims are about, fixed before any run: the first of these that a run has.
_MAIN: Final = ("alignment", "disentanglement", "vp")


def _score(key: str, title: str, better: Better = "", digits: int = 3) -> Measure:
    return Measure(key, title, lambda seed: score_of(seed, key), digits=digits, better=better)


_SCORES: Final = {
    "results": (
        _score("alignment", "Alignment with the true directions", "more"),
        _score("disentanglement", "Disentanglement by intervention", "more"),
        _score("completeness", "Completeness by intervention", "more"),
        _score("vp", "Variation predictability", "more"),
        _score("ppl", "Path length (PPL)", "less", 0),
        _score("frechet", "Distance from real data (Frechet)", "less"),
        _score("orthonormality_error", "|U U^T - I|"),
    ),
    "images": (
        _score("factor_spread", "Least spread of a factor"),
        _score("frechet_classifier", "Frechet distance with features of a classifier", "less"),
        _score("coverage", "Coverage", "more"),
    ),
    "codes": (
        _score("mig", "MIG", "more"),
        _score("dci_disentanglement", "DCI disentanglement", "more"),
        _score("factor_vae", "FactorVAE score", "more"),
        _score("beta_vae", "beta-VAE score", "more"),
        _score("sap", "SAP", "more"),
        _score("modularity", "Modularity", "more"),
        _score("encoder_r2", "R^2 of the encoder"),
    ),
}


def score_of(seed: SeedRun, key: str) -> float:
    """A score of a finished seed; NaN where it has none, or where its images hardly vary."""
    needs = key.startswith(_NEED_SPREAD) and not key.endswith(_LEVELS)
    if needs and hardly_varies(seed, _PROJECTED if key.endswith(_PROJECTED) else ""):
        return math.nan
    return group(seed, "scores").get(key, math.nan)


def hardly_varies(seed: SeedRun, projected: str = "") -> bool:
    """Whether a factor has less than half of its spread in real images.

    Args:
        seed: A finished training.
        projected: The end of the keys of a generator that was trained further after it.
    """
    return score_of(seed, f"factor_spread{projected}") < LEAST_SPREAD


def of_table(name: str) -> Callable[[Run], list[Measure]]:
    """The scores of one table that any seed has; those that no table knows are results."""

    def measures(run: Run) -> list[Measure]:
        found = _keys(run)
        known = {score.key for table in _SCORES.values() for score in table}
        others = [k for k in found if k not in known and not k.endswith((*TURNED, *_LEVELS))]
        return [
            *(score for score in _SCORES[name] if score.key in found),
            *(_score(key, key.replace("_", " ")) for key in others if name == "results"),
        ]

    return measures


def has_any(name: str) -> Callable[[Variant], bool]:
    """Whether any seed of a variant has a score of a table."""
    return lambda variant: any(score.over_seeds(variant) for score in _SCORES[name])


def scores(run: Run) -> list[Measure]:
    """Every score of generators as trained that any seed has."""
    return [score for name in _SCORES for score in of_table(name)(run)]


def turned_scores(run: Run) -> list[Measure]:
    """The same of latents turned after training, see :data:`TURNED`."""
    found = _keys(run)
    return [
        _score(f"{one.key}{end}", f"{one.title}, after {what}", one.better, one.digits or 0)
        for one in scores(run)
        for end, what in TURNED.items()
        if f"{one.key}{end}" in found
    ]


def _keys(run: Run) -> dict[str, None]:
    return {key: None for v in run.variants for s in v.finished for key in group(s, "scores")}


def is_turned(variant: Variant) -> bool:
    """Whether any seed has a score of its latents turned after training."""
    return any(key.endswith(tuple(TURNED)) for s in variant.finished for key in group(s, "scores"))


def named(run: Run, *keys: str) -> list[Measure]:
    """The scores of these keys that the run has, in this order."""
    known = {score.key: score for score in (*scores(run), *turned_scores(run))}
    return [known[key] for key in keys if key in known]


def main_score(run: Run) -> Measure | None:
    """The score that says how far the latents are separated."""
    return next(iter(named(run, *_MAIN)), None)


def levels(name: str) -> Callable[[Run], list[tuple[Cell, ...]]]:
    """One row: what the scores of a table are read beside, over all trainings, if anything."""

    def level(run: Run, score: Measure) -> Spread:
        seeds = [seed for variant in run.variants for seed in variant.finished]
        return Spread.of(score_of(seed, score.key + end) for seed in seeds for end in _LEVELS)

    def row(run: Run) -> list[tuple[Cell, ...]]:
        found = [(score, level(run, score)) for score in of_table(name)(run)]
        if not any(spread for _, spread in found):
            return []
        cells = (Cell(score.show(spread), spread) for score, spread in found)
        return [(Cell("Chance, or real data"), *cells, Cell(MISSING, exact=""))]

    return row


# --- the latent weight, costs -------------------------------------------------------------------

#: What has a condition while training: its name in the records, and on the page.
CONDITIONS: Final = {
    "weight": "Condition of the weight",
    "gradient": "Condition of the gradient",
    "update": "Condition of the executed step",
}


def deviation_of(row: Row) -> float:
    """``|U U^T - I|`` of a line."""
    return number(row, "gram_deviation")


def _final_deviation(seed: SeedRun) -> float:
    """The mean over the last line of each layer; NaN without a line."""
    return mean({row.get("layer"): deviation_of(row) for row in seed.of_kind("latent")}.values())


DEVIATION: Final = Measure("gram_deviation", "|U U^T - I| at the end", _final_deviation)
USED: Final = olr_used("olr_used_percent", digits=2)
WEIGHTS: Final = (
    DEVIATION,
    *(
        condition(what, "condition_range", title, better=False).named(f"{what}_condition")
        for what, title in CONDITIONS.items()
    ),
    USED,
)
COSTS: Final = (
    step_time(),
    SECONDS,
    PEAK_MEMORY,
    result("trainable", "Trained numbers of the generator", digits=0),
)


def seed_numbers(run: Run) -> list[Measure]:
    """Every score of one seed, and its costs as recorded."""
    recorded = raw("step_ms", "seconds", "steps", "trainable")
    return [*scores(run), *turned_scores(run), *recorded]


# --- which variant is which ---------------------------------------------------------------------


def with_sgd(variant: Variant) -> bool:
    """Whether the latent weight is trained with SGD in place of Adam."""
    return variant.name.endswith("-sgd")


def pairs(run: Run) -> Iterator[tuple[Variant, Variant]]:
    """Every finished variant and the baseline with the same optimizer."""
    for variant in run.variants:
        other = run.finished(run.baseline_name + ("-sgd" if with_sgd(variant) else ""))
        if other is not None and variant is not other and variant.finished:
            yield variant, other


def turned_variants(run: Run) -> list[Variant]:
    """Each variant with its latent turned after training: ``nog_sefa`` has the scores of SeFa."""
    main = main_score(run)
    if main is None:
        return []
    turned = [(v, end, _turned_seeds(v, main, end)) for v in run.variants for end in TURNED]
    return [
        replace(v, name=v.name + end, title=f"{v.title} after {TURNED[end]}", seeds=seeds)
        for v, end, seeds in turned
        if seeds
    ]


def _turned_seeds(variant: Variant, main: Measure, end: str) -> tuple[SeedRun, ...]:
    """The seeds with such a main score; turned scores go by the names of those not turned.

    A score that was not taken again, as that of the images after SeFa, stays what it was.
    """
    found = [
        (seed, known, {k.removesuffix(end): v for k, v in known.items() if k.endswith(end)})
        for seed in variant.finished
        if (known := group(seed, "scores"))
    ]
    return tuple(
        replace(seed, result={**(seed.result or {}), "scores": {**known, **turned}})
        for seed, known, turned in found
        if main.key in turned
    )


# --- how they are drawn -------------------------------------------------------------------------

# The place of a treatment's color in the theme's cycle, the one that colors a sum first.
_CYCLE: Final = {"retraction": 2, "ol": 3, "olr": 1, "nog-update": 5, "nog": 0}
# The rivals are browns and greys, away from what is done to the latent weight.
_RIVALS: Final = {
    "hessian": ("#8a5a2b", "#c79a6c"),
    "orojar": ("#5d6b2f", "#a9ba6d"),
    "vp": ("#6b4a86", "#b79bd0"),
}


def look(run: Run, theme: Theme) -> Mapping[str, Look]:
    """By name: the baseline in ink, treatments in colors, sums dashed and other rates dotted."""
    return {
        v.name: Look(v.title.removesuffix(", SGD"), _color(v, theme), _line(v))
        for v in run.variants
    }


def _line(variant: Variant) -> LineStyle:
    if len(variant.treatments) > 1:
        return "--"
    return ":" if is_control(variant.name) and not with_sgd(variant) else "-"


def _color(variant: Variant, theme: Theme) -> str:
    for name, colors in _RIVALS.items():
        if name in variant.treatments:
            return colors[theme is DARK]
    main = next((name for name in _CYCLE if name in variant.treatments), None)
    return theme.ink if main is None else theme.cycle[_CYCLE[main]]
