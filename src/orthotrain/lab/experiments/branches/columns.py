"""What pages with branches measure: sizes, compute in dense runs, and cuts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.branches.goal import Goal
from orthotrain.lab.experiments.branches.kinds import kind_of
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.measures import result
from orthotrain.lab.report.rows import Row, number
from orthotrain.lab.report.stats import Measure

_UNIT: Final = "% of the dense run"

# --- compute ------------------------------------------------------------------------------------


def dense_compute(run: Run) -> float:
    """Floating-point operations of the dense run, 100 % everywhere on the page; NaN if unknown.

    Those of the baseline where it finished, else the most that a variant says came before it.
    """
    finished = run.baseline.finished if run.baseline is not None else ()
    known = [seed.final("compute") for seed in finished] or [
        seed.final("compute_before") for variant in run.variants for seed in variant.finished
    ]
    return max((value for value in known if value > 0), default=math.nan)


def compute(run: Run) -> Measure:
    """Of this training itself."""
    alone = result(
        "compute", "Compute", scale=100.0 / dense_compute(run), unit=_UNIT, digits=1, better="less"
    )
    return alone.named("compute_percent_of_dense")


def whole_compute(run: Run) -> Measure:
    """Of this training and of the dense one that it starts from or learns from."""
    scale = 100.0 / dense_compute(run)

    def read(seed: SeedRun) -> float:
        return scale * (seed.final("compute") + seed.final("compute_before"))

    return Measure(
        "whole_compute_percent_of_dense", "Compute, dense run included", read, _UNIT, 1, "less"
    )


def as_ratio(measure: Measure) -> Measure:
    """The same compared as a ratio of two variants."""
    return replace(measure, logarithmic=True)


# --- the cut alone ------------------------------------------------------------------------------


def cut_of(seed: SeedRun, goal: Goal) -> Row | None:
    """The first cut of a training, where the network was looked at right after."""
    rows = (row for row in seed.of_kind("cut") if math.isfinite(number(row, goal.field)))
    return next(rows, None)


def was_cut(variant: Variant, goal: Goal) -> bool:
    """Whether any finished seed recorded a cut."""
    return any(cut_of(seed, goal) is not None for seed in variant.finished)


def cut_alone(variant: Variant, goal: Goal) -> Variant:
    """The network of a branch right after its cut, as a variant of its own.

    What is looked at while training is another part of the data than what decides. So the cut
    has the result at the end less what training on gained since the cut, both on that same part.
    Its compute is what was counted up to the cut.
    """

    def seeds() -> Iterator[SeedRun]:
        for seed in variant.finished:
            cut, end = cut_of(seed, goal), goal.end(seed)
            if cut is None or seed.result is None or math.isnan(end):
                continue
            gained = number(cut, goal.field) - end
            changed: dict[str, object] = {
                key: seed.final(key) + gained
                for key in (f"validation_{goal.field}", f"test_{goal.field}")
                if math.isfinite(seed.final(key))
            }
            changed["compute"] = number(cut, "compute")
            yield replace(seed, result={**seed.result, **changed})

    return replace(
        variant, name=f"{variant.name}-cut", title=f"{variant.title}, the cut alone",
        seeds=tuple(seeds()),
    )  # fmt: skip


def cuts(goal: Goal) -> tuple[Measure, ...]:
    """The columns of the table of cuts."""

    def at_cut(key: str) -> Callable[[SeedRun], float]:
        def read(seed: SeedRun) -> float:
            cut = cut_of(seed, goal)
            return math.nan if cut is None else number(cut, key)

        return read

    field = goal.field
    return (
        result("switch_step", "Step of the cut", digits=0),
        goal.look("Before the cut", f"cut_{field}_before", at_cut(f"{field}_before")),
        goal.look("Right after the cut", f"cut_{field}", at_cut(field)),
        goal.look("At the end", f"end_{field}", goal.end),
    )


# --- tables -------------------------------------------------------------------------------------


def results(run: Run, goal: Goal) -> list[Measure]:
    """What decides, size and compute: the numbers of the first figure."""
    return [goal.measure(run), sizes(run)[1], compute(run), whole_compute(run)]


def stored_label(variant: Variant) -> str:
    """The stored size that a variant aims at, such as ``50 %``; empty without one."""
    percent = kind_of(variant).percent
    return f"{percent} %" if percent else ""
