"""The tables of a run of generators: scores, costs, every comparison, every seed."""

from __future__ import annotations

import math

from orthotrain.report.latent.measures import (
    Score,
    compare,
    find,
    reference_of,
    scores_of,
    turned_scores_of,
)
from orthotrain.report.load import Run, Variant
from orthotrain.report.paired import Paired, over_seeds
from orthotrain.report.tables import MISSING, Cell, Spread, Table, raw_cell
from orthotrain.report.tables import over_seeds as result_over_seeds

_VERDICTS = {"inside": "inside the spread", "single": "single seed", "infinite": "not finite"}


def results_table(run: Run) -> Table:
    """One row a variant, one column a score."""
    return _scores_table("results", run, scores_of(run))


def turned_table(run: Run) -> Table:
    """One row a variant, one column a score of its latents turned after training."""
    return _scores_table("turned", run, turned_scores_of(run))


def _scores_table(name: str, run: Run, scores: tuple[Score, ...]) -> Table:
    rows = tuple(
        (
            Cell(variant.title),
            *(_cell(over_seeds(variant, s.measure), s.digits) for s in scores),
            Cell(f"{len(variant.finished)} of {variant.planned}"),
        )
        for variant in run.variants
    )
    head = ("Variant", *(s.title + _direction(s) for s in scores), "Seeds")
    return Table(name, head, ("variant", *(s.key for s in scores), "seeds"), rows)


def _direction(score: Score) -> str:
    return {1: " (more is better)", -1: " (less is better)", 0: ""}[score.better]


def _cell(spread: Spread, digits: int) -> Cell:
    return Cell(spread.show(digits), spread)


def costs_table(run: Run) -> Table:
    """One row a variant: time of a step, of the training, and memory."""
    columns = (
        ("Step (ms)", "step_ms", 2, 1.0),
        ("Whole training (s)", "seconds", 1, 1.0),
        ("Peak memory of the process (MiB)", "peak_rss_bytes", 0, 2.0**-20),
        ("Numbers of the generator", "trainable", 0, 1.0),
    )
    rows = tuple(
        (
            Cell(variant.title),
            *(
                _cell(result_over_seeds(variant, key, scale=scale), digits)
                for _, key, digits, scale in columns
            ),
        )
        for variant in run.variants
    )
    head = ("Variant", *(title for title, *_ in columns))
    return Table("costs", head, ("variant", *(key for _, key, *_ in columns)), rows)


def comparisons_table(run: Run) -> Table:
    """One row a variant and score, against nothing done with the same optimizer."""
    rows = []
    for variant in run.variants:
        other = reference_of(run, variant)
        if other is None or not variant.finished:
            continue
        for score in scores_of(run):
            paired = compare(variant, other, score)
            if paired.count:
                rows.append(_comparison_row(paired, score))
    head = (
        *("Variant", "Against", "Score", "Its value", "The other's", "Difference"),
        *("95 % from", "to", "Seeds", "Verdict"),
    )
    keys = (
        *("variant", "against", "score", "value", "other_value", "difference"),
        *("low", "high", "seeds", "verdict"),
    )
    return Table("comparisons", head, keys, tuple(rows))


def _comparison_row(paired: Paired, score: Score) -> tuple[Cell, ...]:
    low, high = paired.interval
    numbers = (
        over_seeds(paired.ours, score.measure).mean,
        over_seeds(paired.other, score.measure).mean,
        paired.difference.mean,
        low,
        high,
    )
    return (
        Cell(paired.ours.title),
        Cell(paired.other.title),
        Cell(score.title),
        *(_number(value, score.digits, signed=i >= 2) for i, value in enumerate(numbers)),
        Cell(str(paired.count), exact=str(paired.count)),
        Cell(verdict_of(paired, score)),
    )


def _number(value: float, digits: int, *, signed: bool) -> Cell:
    if math.isnan(value):
        return Cell(MISSING, exact="")
    return Cell(f"{value:{'+' if signed else ''}.{digits}f}", exact=repr(value))


def verdict_of(paired: Paired, score: Score) -> str:
    """``better``, ``worse``, or why neither; ``higher`` and ``lower`` where none is better."""
    if paired.outcome not in ("lower", "higher"):
        return _VERDICTS.get(paired.outcome, "not measured")
    if not score.better:
        return paired.outcome
    return "better" if (paired.outcome == "higher") == (score.better > 0) else "worse"


def seeds_table(run: Run) -> Table:
    """One row a seed: its result as recorded."""
    scores = (*scores_of(run), *turned_scores_of(run))
    columns = ("step_ms", "seconds", "steps", "trainable")
    rows = tuple(
        (
            Cell(variant.title),
            Cell(str(seed.seed)),
            *(raw_cell(s.measure.value(seed)) for s in scores),
            *(raw_cell(seed.final(key)) for key in columns),
        )
        for variant in run.variants
        for seed in variant.seeds
    )
    keys = ("variant", "seed", *(s.key for s in scores), *columns)
    return Table("seeds", tuple(key.replace("_", " ") for key in keys), keys, rows)


def shown_first(run: Run) -> list[Variant]:
    """Variants with a finished seed, nothing done first."""
    baseline = find(run, run.baseline_name)
    finished = [variant for variant in run.variants if variant.finished]
    return sorted(finished, key=lambda variant: variant is not baseline)
