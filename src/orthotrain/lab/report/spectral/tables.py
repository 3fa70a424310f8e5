"""The tables of a spectral run: errors, conditioning, costs, every comparison, every seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.paired import Measure, Paired, over_seeds
from orthotrain.lab.report.spectral.measures import (
    LARGEST,
    RIDGE,
    SENSES,
    TEST_ERROR,
    VALIDATION_ERROR,
    compare,
    direct_parts,
    end_rank,
    end_values,
    find,
    rates_of,
    reference_of,
)
from orthotrain.lab.report.tables import (
    MISSING,
    Cell,
    Spread,
    Table,
    raw_cell,
)
from orthotrain.lab.report.tables import over_seeds as result_over_seeds

# Between a geometric mean and the factor of one standard deviation of its logarithm.
TIMES_OVER: Final = "\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}"
PART_NAMES: Final = {
    "root": "root",
    "nearest_orthogonal_gradient": "NOG",
    "optimal_learning_rate": "OLR",
    "orthogonal_penalty": "OL",
    "spectral_normalization": "SN",
    "retraction": "retraction",
    "condition_monitor": "monitor",
}


def short(value: float) -> str:
    """Three digits: ``680``, ``5.31``; from 10,000 on and below 0.001 as ``6.8e4``."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "infinite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def show_factor(spread: Spread) -> str:
    """A spread of decimal logarithms as mean and factor, the sign between them times-over."""
    if not spread:
        return MISSING
    shown = short(10**spread.mean)
    return shown if math.isnan(spread.std) else f"{shown} {TIMES_OVER} {short(10**spread.std)}"


def condition_cell(variant: Variant, measure: Measure) -> Cell:
    """Geometric mean over seeds with the share of infinite records; logarithms in the CSV file."""
    spread = over_seeds(variant, measure)
    values = [
        value for seed in variant.finished for value in end_values(seed, "covariance", measure.key)
    ]
    infinite = sum(map(math.isinf, values))
    if not infinite:
        return Cell(show_factor(spread), spread)
    if not spread:
        return Cell("infinite", spread)
    return Cell(f"{show_factor(spread)} (infinite in {100 * infinite / len(values):.0f} %)", spread)


def results_table(run: Run) -> Table:
    """One row a variant: errors, the difference to the root alone, weight norm and time."""
    root = find(run)
    rows = tuple(
        (
            Cell(variant.title),
            *(_spread_cell(over_seeds(variant, m), 2) for m in (TEST_ERROR, VALIDATION_ERROR)),
            _difference_cell(variant, root),
            _spread_cell(result_over_seeds(variant, "weight_norm"), 2),
            _spread_cell(result_over_seeds(variant, "step_ms_final"), 2),
            Cell(f"{len(variant.finished)} of {variant.planned}"),
        )
        for variant in run.variants
    )
    against = root.title if root is not None else "the root alone"
    head = (
        *("Variant", "Test error (%)", "Validation error (%)"),
        f"Test error less that of {against} (points; 95 % interval)",
        *("Weight norm at the end", "Step (ms)", "Seeds"),
    )
    keys = (
        *("variant", "test_error_percent", "validation_error_percent"),
        *("difference_to_root_points", "weight_norm", "step_ms_final", "seeds"),
    )
    return Table("results", head, keys, rows)


def _spread_cell(spread: Spread, digits: int) -> Cell:
    return Cell(spread.show(digits), spread)


def _difference_cell(variant: Variant, root: Variant | None) -> Cell:
    if root is None or variant is root:
        return Cell(MISSING, Spread.of(()))
    paired = compare(variant, root, TEST_ERROR)
    spread = paired.difference
    if not spread:
        return Cell(MISSING, spread)
    if math.isnan(spread.std):
        return Cell(f"{spread.mean:+.2f}", spread)
    return Cell(f"{spread.mean:+.2f} ± {spread.std:.2f} ({interval(paired)})", spread)


def interval(paired: Paired) -> str:
    """The 95 % interval as text; a dash for fewer than two seeds."""
    low, high = paired.interval
    if math.isnan(low):
        return MISSING
    if paired.measure.logarithmic:
        return f"{short(low)} to {short(high)}"
    return f"{low:+.2f} to {high:+.2f}"


def conditioning_table(run: Run) -> Table:
    """One row a variant: the covariance at the end in all four senses, its rank and its scale."""
    measures = (*SENSES, LARGEST, RIDGE)
    rows = tuple(
        (
            Cell(variant.title),
            *(condition_cell(variant, measure) for measure in measures),
            _rank_cell(variant),
        )
        for variant in run.variants
    )
    head = ("Variant", *(f"Condition {sense.title}" for sense in SENSES))
    keys = ("variant", *(f"log10_{measure.key}" for measure in measures))
    return Table(
        "conditioning",
        (*head, "Largest eigenvalue", "Ridge", "Numerical rank"),
        (*keys, "numerical_rank"),
        rows,
    )


def _rank_cell(variant: Variant) -> Cell:
    pairs = [end_rank(seed) for seed in variant.finished]
    rank, size = Spread.of(pair[0] for pair in pairs), Spread.of(pair[1] for pair in pairs)
    if not rank:
        return Cell(MISSING, rank)
    of = f" of {size.mean:.0f}" if size else ""
    exact = rank.std == 0 or math.isnan(rank.std)
    return Cell(f"{f'{rank.mean:.4g}' if exact else rank.show(1)}{of}", rank)


def share_keys(run: Run) -> tuple[str, ...]:
    """The timed parts of a step in the order of the page, unknown ones last."""
    found = {key for v in run.variants for seed in v.finished for key in shares(seed)}
    return (*(key for key in PART_NAMES if key in found), *sorted(found - set(PART_NAMES)))


def shares(seed: SeedRun) -> dict[str, float]:
    """The fraction of one optimizer step that each timed part took."""
    recorded = seed.result.get("shares") if seed.result is not None else None
    if not isinstance(recorded, dict):
        return {}
    return {
        str(key): float(value)
        for key, value in recorded.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def share_over_seeds(variant: Variant, key: str) -> Spread:
    """One part in percent of a step, over the seeds that timed it."""
    return Spread.of(100.0 * shares(seed).get(key, math.nan) for seed in variant.finished)


def costs_table(run: Run) -> Table:
    """One row a variant: time of a step and of the training, and what the step is spent on."""
    keys = share_keys(run)
    rows = tuple(
        (
            Cell(variant.title),
            _spread_cell(result_over_seeds(variant, "step_ms_final"), 2),
            _spread_cell(result_over_seeds(variant, "seconds"), 1),
            *(_spread_cell(share_over_seeds(variant, key), 2) for key in keys),
        )
        for variant in run.variants
    )
    head = ("Variant", "Step (ms)", "Whole training (s)")
    columns = ("variant", "step_ms_final", "seconds")
    return Table(
        "costs",
        (*head, *(f"{PART_NAMES.get(key, key)} (% of a step)" for key in keys)),
        (*columns, *(f"{key}_percent" for key in keys)),
        rows,
    )


def comparisons(run: Run) -> Iterator[tuple[Variant, Variant]]:
    """Every pair that the findings speak of: with the reference, then with the parts."""
    for variant in run.variants:
        reference = reference_of(run, variant)
        held_against = [] if reference is None else [reference]
        for other in (*held_against, *direct_parts(run, variant)):
            yield variant, other


_VERDICTS: Final = {
    "lower": "lower",
    "higher": "higher",
    "inside": "inside the spread",
    "single": "single seed",
    "infinite": "not finite in every seed",
}


def comparisons_table(run: Run) -> Table:
    """One row a pair and measure: both values, the difference or ratio, what seeds allow to say."""
    rows = []
    for ours, other in comparisons(run):
        for measure in (TEST_ERROR, *SENSES, LARGEST):
            paired = compare(ours, other, measure)
            if paired.outcome != "unknown":
                rows.append(_comparison_row(paired))
    return Table(
        "comparisons",
        (
            *("Variant", "Against", "Measure", "Its value", "The other's"),
            *("Difference or ratio", "95 % from", "to", "Seeds", "Verdict"),
        ),
        (
            *("variant", "against", "measure", "value", "other_value", "difference_or_ratio"),
            *("low", "high", "seeds", "verdict"),
        ),
        tuple(rows),
    )


def _comparison_row(paired: Paired) -> tuple[Cell, ...]:
    measure = paired.measure
    shown = f"{short(paired.ratio)} times" if measure.logarithmic else ""
    if not measure.logarithmic and paired.difference:
        shown = f"{paired.difference.mean:+.2f} points"
    exact = paired.ratio if measure.logarithmic else paired.difference.mean
    return (
        Cell(paired.ours.title),
        Cell(paired.other.title),
        Cell(measure.title if not measure.key.startswith("cond") else f"condition {measure.title}"),
        _value_cell(paired.ours, measure),
        _value_cell(paired.other, measure),
        Cell(shown if paired.count else MISSING, exact=repr(exact) if paired.count else ""),
        *(_end_of_interval(end, paired) for end in paired.interval),
        Cell(str(paired.count), exact=str(paired.count)),
        Cell(_VERDICTS[paired.outcome]),
    )


def _end_of_interval(end: float, paired: Paired) -> Cell:
    if math.isnan(end):
        return Cell(MISSING, exact="")
    return Cell(short(end) if paired.measure.logarithmic else f"{end:+.2f}", exact=repr(end))


def _value_cell(variant: Variant, measure: Measure) -> Cell:
    spread = over_seeds(variant, measure)
    if not spread:
        return Cell("infinite", exact="")
    mean = 10**spread.mean if measure.logarithmic else spread.mean
    return Cell(short(mean) if measure.logarithmic else f"{mean:.2f}", exact=repr(mean))


def rates_table(run: Run) -> Table:
    """One row a variant with OLR: how often it was used, how small it is, and cos(w, l)."""
    rows = []
    for variant in run.variants:
        rates = rates_of(variant)
        if rates.used:
            rows.append(
                (
                    Cell(variant.title),
                    _spread_cell(rates.used, 1),
                    Cell(show_factor(rates.ratio), rates.ratio),
                    Cell(show_factor(rates.cosine), rates.cosine),
                )
            )
    return Table(
        "rates",
        (
            *("Variant", "Used (% of recorded steps)"),
            *("Where used, over the scheduled rate", "Median of |cos(w, l)|"),
        ),
        ("variant", "used_percent", "log10_rate_ratio", "log10_cosine"),
        tuple(rows),
    )


_SEED_COLUMNS: Final = (
    *("validation_accuracy", "test_accuracy", "validation_loss", "test_loss"),
    *("weight_norm", "step_ms_final", "seconds", "steps", "trainable", "stored", "dense"),
)


def seeds_table(run: Run) -> Table:
    """One row a seed: its result as recorded and its covariance at the end."""
    keys, measures = share_keys(run), (*SENSES, LARGEST)
    rows = tuple(
        (
            Cell(variant.title),
            Cell(str(seed.seed)),
            *(raw_cell(seed.final(key)) for key in _SEED_COLUMNS),
            *(_end_cell(measure.value(seed)) for measure in measures),
            raw_cell(end_rank(seed)[0]),
            *(raw_cell(shares(seed).get(key, math.nan)) for key in keys),
        )
        for variant in run.variants
        for seed in variant.seeds
    )
    names = ("variant", "seed", *_SEED_COLUMNS, *(m.key for m in measures), "numerical_rank")
    columns = (*names, *(f"share_{key}" for key in keys))
    return Table("seeds", tuple(name.replace("_", " ") for name in columns), columns, rows)


def _end_cell(value: float) -> Cell:
    if math.isnan(value):
        return Cell(MISSING)
    return Cell(short(value), exact="inf" if math.isinf(value) else repr(value))
