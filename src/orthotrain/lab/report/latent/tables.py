"""The tables of a run of generators: scores, costs, every comparison, every seed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from orthotrain.lab.report.latent.measures import (
    Score,
    compare,
    final_deviation,
    find,
    level_of,
    reference_of,
    scores_of,
    turned_scores_of,
)
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.paired import Measure, Paired, over_seeds
from orthotrain.lab.report.spectral.measures import end_of, share_used
from orthotrain.lab.report.spectral.tables import show_factor
from orthotrain.lab.report.tables import MISSING, Cell, Spread, Table, raw_cell
from orthotrain.lab.report.tables import over_seeds as result_over_seeds

_CONDITIONS: Final = tuple(
    Measure(what, title, end_of(what, "condition_range"), logarithmic=True)
    for what, title in (
        ("weight", "Condition of the weight"),
        ("gradient", "Condition of the gradient"),
        ("update", "Condition of the executed step"),
    )
)
_DEVIATION: Final = Measure("gram_deviation", "|U U^T - I| at the end", final_deviation, False)
_USED: Final = Measure(
    "olr_used_percent", "OLR used (% of steps)", lambda seed: 100 * share_used(seed), False
)
_VERDICTS: Final = {
    "inside": "inside the spread",
    "single": "single seed",
    "infinite": "not finite",
}


def results_table(run: Run) -> Table:
    """One row a variant, one column a score; the last row is what they are read against."""
    scores = scores_of(run)
    table = _scores_table("results", run, scores)
    levels = [(level_of(run, score), score.digits) for score in scores]
    if not any(level for level, _ in levels):
        return table
    cells = (_cell(level, digits) for level, digits in levels)
    row = (Cell("Chance, or real against real"), *cells, Cell(MISSING, exact=""))
    return replace(table, rows=(*table.rows, row))


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


def weights_table(run: Run) -> Table:
    """One row a variant: the latent weight at the end of training, and how often OLR acted.

    Conditions are geometric means over layers, the last tenth of records, and seeds.
    """
    rows = tuple(
        (
            Cell(variant.title),
            Cell(_small(deviation := over_seeds(variant, _DEVIATION)), deviation),
            *(
                Cell(show_factor(spread), spread)
                for spread in (over_seeds(variant, measure) for measure in _CONDITIONS)
            ),
            _cell(over_seeds(variant, _USED), 2),
        )
        for variant in run.variants
    )
    measures = (_DEVIATION, *_CONDITIONS, _USED)
    head = ("Variant", *(measure.title for measure in measures))
    keys = (f"log10_{m.key}_condition" if m.logarithmic else m.key for m in measures)
    return Table("weights", head, ("variant", *keys), rows)


def _small(spread: Spread) -> str:
    """Three decimals, more where they would all be zeros."""
    return f"{spread.mean:.1e}" if spread and 0 < spread.mean < 1e-3 else spread.show(3)


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
