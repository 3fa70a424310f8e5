"""What a page with branches asks of its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from orthotrain.lab.experiments.branches.columns import as_ratio, compute
from orthotrain.lab.experiments.branches.goal import Goal
from orthotrain.lab.experiments.branches.kinds import at, branches, kind_of, of_family, percents
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.claims import Claim
from orthotrain.lab.report.default import pairs_with_baseline
from orthotrain.lab.report.load import Run, Variant


def claims(run: Run, goal: Goal) -> list[Claim]:
    """What branches, cuts on the way and repairs are compared with."""
    decides = (goal.measure(run),)
    # Sizes of one aim differ a little by construction, which is no cost to be told.
    beside = (as_ratio(compute(run)), replace(sizes(run)[1], better=""))

    def claim(question: str, pairs: Sequence[tuple[Variant, Variant]], note: str = "") -> Claim:
        named = tuple((ours.name, other.name) for ours, other in pairs)
        return Claim(question, named, decides, beside, note=note)

    ratio = "The compute is compared as a ratio, the dense run left out."
    asked = [
        claim(
            f"Is a branch of {percent} % better than a narrow network from scratch?",
            _beside(run, _all_branches, "narrow", percent), ratio,
        )
        for percent in percents(run)
    ]  # fmt: skip
    asked += [
        claim(
            "Is a branch better than a narrow network with as much compute?",
            _every(run, _nearest("narrow-short"), "narrow-short"),
            f"At each size the branch whose compute is nearest. {ratio}",
        ),
        claim(
            "Is a branch better than a narrow network with the same teacher?",
            _every(run, branches, "narrow-teacher"), ratio,
        ),
        claim(
            "Is a branch better than one with the same teacher and as much compute?",
            _every(run, _nearest("narrow-teacher-short"), "narrow-teacher-short"),
            f"At each size the branch whose compute is nearest. {ratio}",
        ),
        claim("Does the teacher help the branch?", _with_teacher(run)),
        claim(
            "Is a cut at half of the run better than a narrow network from scratch?",
            _every(run, _of("half"), "narrow"), ratio,
        ),
        claim(
            "Are frozen bases better with both repairs, and as good as trained ones?",
            _every(run, _of("frozen"), "frozen-plain") + _every(run, _of("frozen"), "half"),
        ),
    ]  # fmt: skip
    return [one for one in asked if one.pairs]


_Ours = Callable[[Run, int], Sequence[Variant]]


def _of(family: str) -> _Ours:
    return lambda run, percent: [v for v in (at(run, family, percent),) if v is not None]


def _all_branches(run: Run, percent: int) -> Sequence[Variant]:
    return [*branches(run, percent), *_of("branch-alone")(run, percent)]


def _nearest(family: str) -> _Ours:
    """The branch whose compute is nearest to that of a family; all where that is unknown."""

    def chosen(run: Run, percent: int) -> Sequence[Variant]:
        mine, other, work = branches(run, percent), at(run, family, percent), compute(run)
        goal = math.nan if other is None else work.mean(other)
        known = [v for v in mine if work.mean(v) > 0]
        if not (known and goal > 0):
            return mine
        return [min(known, key=lambda v: abs(math.log(work.mean(v) / goal)))]

    return chosen


def _beside(run: Run, ours: _Ours, family: str, percent: int) -> list[tuple[Variant, Variant]]:
    other = at(run, family, percent)
    return [] if other is None else [(variant, other) for variant in ours(run, percent)]


def _every(run: Run, ours: _Ours, family: str) -> list[tuple[Variant, Variant]]:
    return [pair for percent in percents(run) for pair in _beside(run, ours, family, percent)]


def _with_teacher(run: Run) -> list[tuple[Variant, Variant]]:
    return [
        (taught, alone)
        for alone in of_family(run, "branch-alone")
        for taught in branches(run, kind_of(alone).percent)
        if kind_of(taught).steps == kind_of(alone).steps
    ]


def compared(run: Run) -> list[tuple[Variant, Variant]]:
    """Every variant with the dense network and with the narrow one of its size."""
    pairs = pairs_with_baseline(run)
    for percent in percents(run):
        narrow = at(run, "narrow", percent)
        pairs += [
            (v, narrow) for v in run.variants
            if narrow is not None and v is not narrow and kind_of(v).percent == percent
        ]  # fmt: skip
    return pairs
