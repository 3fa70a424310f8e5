"""The page of rivals: one table, one figure, and what each of them lacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.branches.columns import as_ratio, compute
from orthotrain.lab.experiments.branches.goal import Goal
from orthotrain.lab.experiments.branches.kinds import finished
from orthotrain.lab.experiments.language.columns import BITS
from orthotrain.lab.experiments.lowrank.columns import GOAL as ACCURACY
from orthotrain.lab.experiments.rivals.table import HALF, RIVALS, left_out
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.claims import Claim, each
from orthotrain.lab.report.default import pairs_with_baseline
from orthotrain.lab.report.load import Run
from orthotrain.lab.report.measures import SECONDS, TRAINING_MEMORY, raw, result, step_time
from orthotrain.lab.report.page import Card, Page
from orthotrain.lab.report.ranks import ranks_table
from orthotrain.lab.report.scatter import Group, Marker, Over, Scatter
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.tables import BySeed, ByVariant, Cell, Compared, Own, Table

# Marker and color of each rival, in the order of the table; dense is first.
_MARKERS: Final[tuple[Marker, ...]] = ("D", "s", "v", "^", "P", "X", "o", "D", "*", "o")


def goal(run: Run) -> Goal:
    """What decides: bits per byte where any were recorded, else accuracy."""
    text = any(BITS.of_part("validation").over_seeds(variant) for variant in run.variants)
    return BITS if text else ACCURACY


def _decides(run: Run) -> Measure:
    return goal(run).measure(run)


def _costs(run: Run) -> list[Measure]:
    trained, _, folded = sizes(run)
    return [folded, trained, TRAINING_MEMORY, compute(run)]


def _results(run: Run) -> list[Measure]:
    times = [SECONDS, step_time("step_ms_final", "Time per step at the end")]
    return [_decides(run), *_costs(run), *times, result("switch_step", "Step of the switch")]


# --- claims -------------------------------------------------------------------------------------


def _claims(run: Run) -> list[Claim]:
    others = finished(run.variants)
    better = "a lower" if goal(run).less else "a higher"
    questions = [
        (f"Which have {better} {goal(run).name} than the default?", "default"),
        (f"Which have {better} {goal(run).name} than a narrow network?", f"narrow-{HALF}"),
        (f"Which have {better} {goal(run).name} than the dense network?", "dense"),
    ]
    decides, beside = (_decides(run),), tuple(as_ratio(one) for one in _costs(run))
    asked = [(question, each(others, run.finished(name))) for question, name in questions]
    return [Claim(question, pairs, decides, beside) for question, pairs in asked if pairs]


# --- figure -------------------------------------------------------------------------------------


def _groups(run: Run) -> list[Group]:
    known = [(i, run.variant(row.name), row) for i, row in enumerate(RIVALS)]
    return [
        Group(row.title, i - 1 if i else None, _MARKERS[i % len(_MARKERS)], finished([variant]),
              hollow=i > len(_MARKERS) // 2)
        for i, variant, row in known
    ]  # fmt: skip


def _panels(run: Run) -> list[Over]:
    titles = ("Stored", "Trained", "Memory", "Compute", "Time")
    costs = (*_costs(run), SECONDS)
    return [Over(replace(one, title=title)) for one, title in zip(costs, titles, strict=True)]


_FIGURE: Final = Scatter(
    "rivals", "Rivals: what each reaches, over what it costs",
    "Each panel has the same heights: the less a rival needs of what runs to the right, the "
    "further left it is. The dashed line is the dense network. Stored size counts the network "
    "after training, with updates merged and frozen bases folded; memory is weights, gradients and "
    "optimizer state at the end of training. "
    "Whoever begins dense needs the dense network's until the switch. Compute is that of forward "
    "and backward passes.",
    _decides,
    _panels,
    _groups,
    missing="No finished seed has a result and a size.",
)  # fmt: skip


# --- what each lacks ----------------------------------------------------------------------------


def _lacks(run: Run) -> Table:
    rows = tuple(
        (Cell(row.title), Cell(row.note), Cell(row.lacks), Cell(row.source))
        for row in RIVALS
        if run.variant(row.name) is not None
    )
    return Table(
        "lacks", "What each lacks", ("Rival", "What is done", "What it lacks", "Source"),
        ("rival", "done", "lacks", "source"), rows,
    )  # fmt: skip


def _cards(run: Run) -> list[Card]:
    note = (
        "A name that ends in -like is our own code after the cited paper, simplified where the "
        "documentation of rivals says so; none of it is the authors' code."
    )
    return [Card("What each rival lacks", (Own(_lacks),), note)]


def _missing(run: Run) -> list[str]:
    without = [left_out(row) for row in RIVALS if row.package and run.variant(row.name) is None]
    if "\nown:" in (run.config or "\nown:"):
        return without
    one_rate = (
        "All rivals have the same learning rate, which no search chose: this favours whom it "
        "suits. orthotrain tune finds one for each and writes the line that trains them with it."
    )
    return [one_rate, *without]


def _compared(run: Run) -> list[Measure]:
    return [_decides(run), *(as_ratio(one) for one in _costs(run))]


_SEED_NUMBERS: Final = raw(
    *("test_bits", "validation_bits", "test_accuracy", "validation_accuracy"),
    *("stored", "stored_folded", "dense", "trainable", "compute", "switch_step", "steps"),
    *("seconds", "step_ms_dense_phase", "step_ms_final"),
    *("weight_bytes", "gradient_bytes", "state_bytes", "training_bytes", "peak_rss_bytes"),
)

PAGE: Final = Page(
    lead=(_FIGURE,),
    results=(ByVariant("results", "Results", _results, seeds=True),),
    closing={
        "test_bits": "bits",
        "validation_bits": "validation bits",
        "test_accuracy_percent": "accuracy %",
        "validation_accuracy_percent": "validation %",
        "stored_folded_percent_of_dense": "stored %",
        "trainable_percent_of_dense": "trained %",
        "training_mib": "MiB",
        "compute_percent_of_dense": "compute %",
        "seconds": "seconds",
    },
    claims=_claims,
    cards=_cards,
    details=(Compared(pairs_with_baseline, _compared), BySeed(_SEED_NUMBERS), Own(ranks_table)),
    missing=_missing,
)
