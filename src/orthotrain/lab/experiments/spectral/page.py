"""The page of spectral experiments: errors, conditioning in four senses, published numbers."""

from __future__ import annotations

import math
from typing import Final

from orthotrain.lab.experiments.spectral.columns import (
    LARGEST,
    RANK,
    RATES,
    RIDGE,
    SENSES,
    STEP,
    TEST_ERROR,
    VALIDATION_ERROR,
    WEIGHT_NORM,
    comparable,
    costs,
    direct_parts,
    find,
    group_of,
    is_pooling,
    look,
    pairs,
    reference_of,
    seed_numbers,
    shares,
    shown_in,
)
from orthotrain.lab.experiments.spectral.moments import moments
from orthotrain.lab.experiments.spectral.published_tables import (
    published_cards,
    published_panels,
)
from orthotrain.lab.experiments.watched import (
    NOG,
    OLR,
    OLR_PANELS,
    condition_panel,
    method_rows,
    treated,
)
from orthotrain.lab.report.claims import Claim, each
from orthotrain.lab.report.figures import Curves, FigureOf, Panel, Values, Variants
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.rows import Row, field, number
from orthotrain.lab.report.tables import (
    BySeed,
    ByVariant,
    Compared,
    Difference,
    Own,
)

_GROUPS: Final = ("reference", "single", "combination", "fixed")


# --- claims -------------------------------------------------------------------------------------

_NAMES: Final = {("nog",): "NOG", ("olr",): "OLR", ("nog", "olr"): "NOG + OLR"}
_SCALE: Final = (
    "A fixed ridge sees the scale of the weight: where the condition with the ridge and the "
    "largest eigenvalue change by the same factor, the shape of the spectrum did not change."
)


def _claims(run: Run) -> list[Claim]:
    root, fixed = find(run), find(run, "fixed")
    if root is None:
        return []
    claims = []
    for names, title in _NAMES.items():
        do = "Do" if len(names) > 1 else "Does"
        mine = each([v for v in (find(run, *names),) if v], root)
        held = each([v for v in (find(run, *names, "fixed"),) if v], fixed)
        claims += [
            Claim(f"{do} {title} improve the conditioning?", mine, (*SENSES, LARGEST), note=_SCALE),
            Claim(f"{do} {title} reduce the test error?", mine, (TEST_ERROR,)),
            Claim(
                f"{do} {title} improve the conditioning where the weight norm is held fixed?",
                held, SENSES, beside=(TEST_ERROR,),
            ),
        ]  # fmt: skip
    older = each([v for name in ("ns", "sn", "ol", "ow") if (v := find(run, name))], root)
    summed = [(v.name, part.name) for v in run.variants for part in direct_parts(run, v)]
    return [
        *claims,
        Claim("Which variants have less test error than the baseline?",
              each(run.variants, run.baseline), (TEST_ERROR,)),
        Claim("Which older treatments reduce the test error?", older, (TEST_ERROR,)),
        Claim("Which older treatments improve the conditioning?", older, SENSES),
        Claim("Do combinations have less test error than their parts?", summed, (TEST_ERROR,)),
        Claim("Are combinations better conditioned on the range than their parts?",
              summed, SENSES[:1]),
    ]  # fmt: skip


# --- figures ------------------------------------------------------------------------------------

_STRETCHES: Final = "Each point is the median of one of 40 equal stretches."
_CONDITION: Final = {
    "single": ("conditions", "Condition over training: one treatment at a time"),
    "combination": ("conditions-combined", "Condition over training: combinations"),
    "fixed": ("conditions-fixed", "Condition over training: weight norm held fixed"),
}


def _condition_figure(group: str) -> Curves:
    name, title = _CONDITION[group]
    variants: Variants = lambda run: shown_in(run, group)  # noqa: E731
    return Curves(
        name, title,
        "The covariance that enters the spectral layer; lower is better. On the range: largest "
        "over smallest eigenvalue that counts as non-zero. With the ridge: what the root works "
        "on. Naive: largest over smallest eigenvalue in that precision; where the covariance "
        "lacks rank the smallest is rounding. Infinite numbers are left out; the table counts "
        f"them. {_STRETCHES}",
        [condition_panel("covariance", sense.key, sense.title, variants) for sense in SENSES],
        missing="No condition of a covariance was recorded for these variants.",
    )  # fmt: skip


def _columns(run: Run) -> list[Variants]:
    """References and single treatments, and the rest, each as readable as there is room for."""
    columns = (_in_groups("reference", "single"), _in_groups("combination", "fixed"))
    return [variants for variants in columns if variants(run)]


def _in_groups(*groups: str) -> Variants:
    return lambda run: [v for v in run.variants if group_of(run, v) in groups]


def _scale_panels(run: Run) -> list[Panel]:
    return [
        Panel(title, "condition", field(key, what=what), variants, log=log)
        for title, what, key, log in (
            ("Largest eigenvalue of the covariance", "covariance", "largest", True),
            ("Weight norm (Frobenius)", "weight", "norm", True),
            ("Numerical rank of the covariance", "covariance", "rank", False),
        )
        for variants in _columns(run)
    ]


def _validation_error(row: Row) -> float:
    accuracy = number(row, "accuracy") if row.get("split") == "validation" else math.nan
    return 100.0 * (1.0 - accuracy)


def _training_panels(run: Run) -> list[Panel]:
    return [
        panel
        for variants in _columns(run)
        for panel in (
            Panel("Training loss", "step", field("loss"), variants, log=True),
            Panel("Validation error (%)", "eval", _validation_error, variants, late="top"),
        )
    ]


def _with_root(run: Run) -> list[Variant]:
    root = find(run)
    return [*treated("nog")(run), *([] if root is None else [root])]


def _cosine(row: Row) -> float:
    return abs(number(row, "cosine")) if row.get("method") == OLR else math.nan


def _ordered(run: Run) -> list[Variant]:
    return sorted(run.variants, key=lambda variant: _GROUPS.index(group_of(run, variant)))


def _figures(run: Run) -> list[FigureOf]:
    groups = {group_of(run, variant) for variant in run.variants}
    more = [group for group in ("combination", "fixed") if group in groups]
    published = Curves(
        "published", "Beside the published condition curves",
        "Left: decorrelated batch norm at the published scale, four points of each curve read "
        "out of the authors' figure to about 10 %. Right: this run. In which sense and precision "
        "the published numbers were computed is not known. Data, width, number of steps and "
        "learning rate differ: compare the order of the methods, not the heights.",
        published_panels,
    )  # fmt: skip
    return [
        Values(
            "error", "Test error of every variant",
            "The dotted line is the root alone. The same seed has the same initial weights and "
            "batches in every variant, so compare the differences by seed in the tables.",
            (TEST_ERROR,), variants=_ordered, line=find,
            missing="No finished seed has a test accuracy.",
        ),
        *map(_condition_figure, ("single", *more)),
        *([] if is_pooling(run) else [published]),
        Curves(
            "scale", "Scale of the spectrum and of the weight",
            "A norm after the layer makes the network blind to the scale of the weight before it. "
            "A fixed ridge is not blind to it. So a treatment that only changes this scale "
            "changes the condition with such a ridge, too.",
            _scale_panels, columns=len(_columns(run)) or 1,
            missing="No covariance and no weight was recorded.",
        ),
        Curves(
            "steps", "Condition of the gradient and of the executed update",
            "NOG sets all singular values of the gradient to one. Momentum and weight decay come "
            "after it, so the executed update is orthogonal only where its condition is one. The "
            "root alone is drawn beside the updates.",
            (
                Panel("Gradient before NOG", "method", field("gradient_condition", method=NOG),
                      treated("nog"), log=True),
                condition_panel("update", "condition_range", "Executed update", _with_root),
            ),
            missing="No variant recorded NOG.",
        ),
        Curves(
            "rates", "What the optimal learning rate did",
            "It is used in a step only where it is positive and below the scheduled rate. The "
            "first panel shows those steps alone. The rate is about |w| cos(w, l) / |l| while the "
            "cosine is small. Before a layer that is blind to the scale of w the cosine is zero "
            "up to noise: then OLR all but freezes the layer in the steps in which it is used.",
            (*OLR_PANELS, Panel("|cos(w, l)|", "method", _cosine, treated("olr"), log=True)),
            missing="No variant recorded OLR.",
        ),
        Values(
            "shares", "Share of a step",
            "In percent of one optimizer step with forward and backward: the root with its "
            "gradient, timed alone on matrices of the layer's size, and the hooks of each method. "
            "The monitor only watches.",
            shares, missing="No finished seed recorded what a step is spent on.",
        ),
        Curves(
            "training", "Training curves",
            "Above: the references and single treatments. Below: combinations and fixed norms. "
            f"{_STRETCHES} The axis of the error ends at the level after a fifth of the "
            "evaluations.",
            _training_panels,
            missing="No training loss and no validation accuracy was recorded.",
        ),
    ]  # fmt: skip


# --- what is missing ----------------------------------------------------------------------------

_EXPECTED: Final = (
    *(("ns",), ("sn",), ("ol",), ("ow",), ("nog",), ("olr",)),
    *(("nog", "sn"), ("nog", "ol"), ("nog", "ow"), ("nog", "olr"), ("ow", "olr")),
    *(("nog", "ow", "olr"), ("fixed",), ("nog", "fixed"), ("olr", "fixed")),
    ("nog", "olr", "fixed"),
)


def _missing(run: Run) -> list[str]:
    notes = []
    if find(run) is None:
        notes.append(
            "There is no variant with the root alone (treatments ['root'] in run.json), so no "
            "treatment is compared with it."
        )
    absent = [
        " + ".join(part if part == "fixed" else part.upper() for part in wanted)
        for wanted in _EXPECTED
        if find(run, *wanted) is None
    ]
    if absent:
        notes.append(f"Not part of this run: {', '.join(absent)}.")
    return notes + [note for variant in run.variants for note in _of_variant(run, variant)]


def _of_variant(run: Run, variant: Variant) -> list[str]:
    notes = []
    finished = {seed.seed for seed in variant.finished}
    untested = [str(s.seed) for s in variant.finished if math.isnan(TEST_ERROR.read(s))]
    if untested:
        notes.append(f"{variant.title}: no test accuracy for seed {', '.join(untested)}.")
    if finished and variant is not run.baseline and not variant.treatments:
        notes.append(f"{variant.title}: run.json names no treatments, so it is not compared.")
    # Average pooling forms no covariance.
    if finished and not (variant is run.baseline and is_pooling(run)):
        unknown = [s.title for s in SENSES if all(math.isnan(s.read(x)) for x in variant.finished)]
        if unknown:
            notes.append(f"{variant.title}: not recorded: {', '.join(unknown)}.")
    other = reference_of(run, variant)
    theirs = {seed.seed for seed in other.finished} if other is not None else set()
    if other is not None and finished and theirs and finished != theirs:
        notes.append(
            f"{variant.title} and {other.title} finished {len(finished & theirs)} seeds in common "
            f"of {len(finished)} and {len(theirs)}; only those are compared."
        )
    return notes


_CONDITIONS: Final = (*SENSES, LARGEST, RIDGE, RANK)
_SENSES_NOTE: Final = (
    "Of the covariance that enters the spectral layer: geometric means over the last tenth of the "
    "records and over seeds. A condition number alone means little: read the four senses together "
    "with the rank and the largest eigenvalue. The ridge of a batch norm is its eps, so its "
    "condition with the ridge is of another ridge and not compared."
)

PAGE: Final = Page(
    results=(
        ByVariant(
            "results", "Results", (TEST_ERROR, VALIDATION_ERROR, WEIGHT_NORM, STEP),
            difference=Difference(TEST_ERROR, find, "difference_to_root_points",
                                  "Test error minus that of"),
            seeds=True,
        ),
        ByVariant("conditioning", "Conditioning", _CONDITIONS, note=_SENSES_NOTE),
        Own(moments),
        ByVariant("costs", "Time", costs),
    ),
    closing={
        "test_error_percent": "test error %",
        "validation_error_percent": "validation error %",
        "weight_norm": "weight norm",
        "step_ms_final": "ms per step",
    },
    claims=_claims,
    figures=_figures,
    cards=published_cards,
    details=(
        Compared(pairs, (TEST_ERROR, *SENSES, LARGEST), comparable),
        ByVariant("rates", "Optimal learning rates", RATES,
                  only=lambda v: any(method_rows(seed, OLR) for seed in v.finished),
                  empty="No finished variant has an optimal learning rate."),
        BySeed(seed_numbers),
    ),
    missing=_missing,
    look=look,
)  # fmt: skip
