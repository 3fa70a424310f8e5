"""What the page of spectral experiments measures, and which of its variants is which.

A condition number alone means little: the same covariance reads 7e2 with its ridge, 8e5 on its
range and 3e16 in float64, where the smallest eigenvalues are rounding. So every number here is
of a named sense, and no sense stands for the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Literal

from orthotrain.lab.experiments.watched import (
    OLR,
    condition,
    condition_values,
    method_rows,
    olr_used,
    rate_ratio,
)
from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.measures import (
    SECONDS,
    end_values,
    error,
    group,
    mean,
    median,
    raw,
    result,
    step_time,
)
from orthotrain.lab.report.rows import field, number, text
from orthotrain.lab.report.stats import Measure, Spread
from orthotrain.lab.report.style import DARK, LineStyle, Look, Theme

# --- measures -----------------------------------------------------------------------------------

TEST_ERROR: Final = error("test")
VALIDATION_ERROR: Final = error("validation")


def _of_covariance(key: str, title: str, *, better: bool = True) -> Measure:
    def infinite(variant: Variant) -> str:
        values = condition_values(variant, "covariance", key)
        count = sum(map(math.isinf, values))
        return f"infinite in {100 * count / len(values):.0f} %" if count else ""

    return replace(condition("covariance", key, title, better=better), aside=infinite)


SENSES: Final = tuple(
    _of_covariance(key, title)
    for key, title in (
        ("condition_range", "Condition on the range"),
        ("condition_ridge", "Condition with the ridge"),
        ("condition_float32", "Naive condition in float32"),
        ("condition_float64", "Naive condition in float64"),
    )
)
RIDGED: Final = SENSES[1]
RIDGE: Final = _of_covariance("ridge", "Ridge", better=False)
LARGEST: Final = _of_covariance("largest", "Largest eigenvalue", better=False)


def _at_end(seed: SeedRun, key: str) -> float:
    return mean(end_values(seed, "condition", field(key), what="covariance"))


def _size(variant: Variant) -> str:
    size = Spread.of(_at_end(seed, "size") for seed in variant.finished)
    return f"of {size.mean:.0f}" if size else ""


RANK: Final = Measure(
    "numerical_rank", "Numerical rank", lambda seed: _at_end(seed, "rank"), aside=_size
)
WEIGHT_NORM: Final = result("weight_norm", "Weight norm at the end", digits=2)
STEP: Final = step_time("step_ms_final")

RATES: Final = (
    olr_used("used_percent", digits=1),
    Measure(
        "rate_ratio",
        "Where used, over the scheduled rate",
        lambda seed: median(rate_ratio(row) for row in method_rows(seed, OLR)),
        logarithmic=True,
    ),
    Measure(
        "cosine",
        "Median of |cos(w, l)|",
        lambda seed: median(abs(number(row, "cosine")) for row in method_rows(seed, OLR)),
        logarithmic=True,
    ),
)

_PARTS: Final = {
    "root": "root",
    "nearest_orthogonal_gradient": "NOG",
    "optimal_learning_rate": "OLR",
    "orthogonal_penalty": "OL",
    "spectral_normalization": "SN",
    "retraction": "retraction",
    "condition_monitor": "monitor",
}


def _timed(run: Run) -> tuple[str, ...]:
    """The timed parts of a step in the order of the page, unknown ones last."""
    found = {key for v in run.variants for seed in v.finished for key in group(seed, "shares")}
    return (*(key for key in _PARTS if key in found), *sorted(found - set(_PARTS)))


def _share(key: str, scale: float) -> Measure:
    def read(seed: SeedRun) -> float:
        return scale * group(seed, "shares").get(key, math.nan)

    return Measure(f"{key}_percent", _PARTS.get(key, key), read, "% of a step", 2, "less")


def shares(run: Run) -> list[Measure]:
    """What a step is spent on, in percent."""
    return [_share(key, 100.0) for key in _timed(run)]


def costs(run: Run) -> list[Measure]:
    """Time of a step and of the training, and what the step is spent on."""
    return [STEP, SECONDS, *shares(run)]


def seed_numbers(run: Run) -> list[Measure]:
    """The result as recorded, the covariance at the end, and the timed parts as fractions."""
    recorded = raw(
        *("validation_accuracy", "test_accuracy", "validation_loss", "test_loss"),
        *("weight_norm", "step_ms_final", "seconds", "steps", "trainable", "stored", "dense"),
    )
    parts = [_share(key, 1.0).named(f"share_{key}") for key in _timed(run)]
    return [*recorded, *SENSES, LARGEST, RANK, *parts]


# --- which variant is which ---------------------------------------------------------------------


def parts(variant: Variant) -> frozenset[str]:
    """What is done beyond taking the root: ``{"nog", "ow"}``; empty for the root alone."""
    return frozenset(variant.treatments) - {"root"}


def find(run: Run, *wanted: str) -> Variant | None:
    """The variant with exactly these treatments on top of the root; none given: the root alone."""
    candidates = (v for v in run.variants if v.treatments)
    return next((v for v in candidates if parts(v) == set(wanted)), None)


def is_pooling(run: Run) -> bool:
    """Whether the spectral layer is covariance pooling; whitening otherwise."""
    return run.baseline_name == "avg" or text(run.info, "recipe").endswith("gcp")


def group_of(run: Run, variant: Variant) -> Literal["reference", "single", "combination", "fixed"]:
    """Where a variant stands in figures that show many of them."""
    done = parts(variant)
    if "fixed" in done:
        return "fixed"
    if variant is run.baseline or not done:
        return "reference"
    return "single" if len(done) == 1 else "combination"


def reference_of(run: Run, variant: Variant) -> Variant | None:
    """What a variant is compared with: the root alone, for a fixed norm with that norm fixed.

    ``None`` for the root alone itself, and where the reference is not part of the run.
    """
    done = parts(variant)
    found = find(run, "fixed") if "fixed" in done and len(done) > 1 else find(run)
    return None if found is variant else found


def direct_parts(run: Run, variant: Variant) -> tuple[Variant, ...]:
    """The largest combinations in the run that are part of this one, all of one size."""
    mine = parts(variant)
    if len(mine) < 2 or "fixed" in mine:
        return ()
    within = [v for v in run.variants if v.treatments and parts(v) < mine and parts(v)]
    largest = max((len(parts(v)) for v in within), default=0)
    return tuple(v for v in within if len(parts(v)) == largest)


def pairs(run: Run) -> Iterator[tuple[Variant, Variant]]:
    """Every pair that is compared: with the reference, then with the parts."""
    for variant in run.variants:
        reference = reference_of(run, variant)
        for other in (*([] if reference is None else [reference]), *direct_parts(run, variant)):
            yield variant, other


def comparable(ours: Variant, other: Variant, measure: Measure) -> bool:
    """The ridge of a batch norm is its eps, another one: with it nothing is compared."""
    return measure is not RIDGED or bool(ours.treatments) == bool(other.treatments)


def shown_in(run: Run, group: str) -> list[Variant]:
    """The variants of one figure: a group with the references that belong beside it."""
    return [v for v in run.variants if group_of(run, v) == group or _beside(run, v, group)]


def _beside(run: Run, variant: Variant, group: str) -> bool:
    done = parts(variant)
    if group == "single":
        return group_of(run, variant) == "reference"
    alone = {frozenset[str](), frozenset({"nog"})}
    if group == "fixed":
        alone.add(frozenset({"olr"}))
    return bool(variant.treatments) and done in alone


# --- how they are drawn -------------------------------------------------------------------------

_EXTRA: Final = {True: "#c79a6c", False: "#8a5a2b"}
# The treatment that gives a variant its color, the rarer one first: NOG + OW looks like OW.
_CYCLE: Final = {"ns": 5, "sn": 4, "ol": 3, "ow": 2, "olr": 1, "nog": 0}


def look(run: Run, theme: Theme) -> dict[str, Look]:
    """By name: the root alone in ink, treatments in colors, the baseline and fixed norms broken."""
    return {v.name: Look(_name(v), _color(run, v, theme), _line(run, v)) for v in run.variants}


def _line(run: Run, variant: Variant) -> LineStyle:
    done = parts(variant)
    # Both beside OLR alone, whose color they have.
    both = done - {"fixed"} == {"nog", "olr"}
    if variant is run.baseline or "fixed" in done:
        return "-." if both else "--"
    return ":" if both else "-"


def _color(run: Run, variant: Variant, theme: Theme) -> str:
    done = parts(variant) - {"fixed"}
    if variant is run.baseline:
        return theme.muted
    if not done:
        return theme.ink
    if len(done) > 2:
        return _EXTRA[theme is DARK]
    if done == {"ow", "olr"}:
        return theme.cycle[5]
    main = next((name for name in _CYCLE if name in done), "nog")
    return theme.cycle[_CYCLE[main]]


def _name(variant: Variant) -> str:
    """Short enough to stand at the end of a line: ``NOG + OW``; the title of a reference."""
    done = parts(variant) - {"fixed"}
    if not done:
        return variant.title
    treated = " + ".join(name.upper() for name in variant.treatments if name in done)
    return f"{treated}, fixed" if "fixed" in parts(variant) else treated
