"""When a branch pays and when it does not, in sentences made from the numbers of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orthotrain.lab.experiments.branches.columns import (
    as_ratio,
    compute,
    dense_compute,
    whole_compute,
)
from orthotrain.lab.experiments.branches.goal import Goal
from orthotrain.lab.experiments.branches.kinds import at, branches, finished, percents
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.stats import MIN_SEEDS, Paired, paired_by_seed


@dataclass(frozen=True)
class Rivals:
    """A branch and a rival of the same size, compared seed by seed.

    Attributes:
        percent: Stored size of both.
        ours: The branch.
        other: The rival.
        goal: What decides.
        paired: Differences in it.
        alone: Compute of ours over the other's, the dense run excluded.
        whole: The same, the dense run included where a training needs it.
    """

    percent: int
    ours: Variant
    other: Variant
    goal: Goal
    paired: Paired
    alone: float
    whole: float

    @property
    def gain(self) -> float:
        """How much ours is better, negative where it is worse."""
        mean = self.paired.difference.mean
        return -mean if self.goal.less else mean

    @property
    def as_good(self) -> bool:
        """Whether the rival is not better; of too few seeds the means decide."""
        verdict = self.paired.verdict()
        return self.gain >= 0 if verdict == "few" else verdict in ("better", "within")

    def pays(self, *, whole: bool) -> bool:
        """Whether ours is as good for less compute."""
        return self.as_good and (self.whole if whole else self.alone) < 1

    @property
    def amount(self) -> str:
        """The size of the difference, such as ``0.021 bits``."""
        return f"{abs(self.gain):.{self.goal.digits}f} {self.goal.word}"

    def said(self, *, rival: str) -> str:
        """Such as ``0.021 bits better than narrow for 32 % of its compute``."""
        if self.paired.verdict() == "within":
            better = f"no measurable difference from {rival}"
        elif round(abs(self.gain), self.goal.digits) == 0:
            better = f"equal to {rival}"
        else:
            word = "better" if self.gain > 0 else "worse"
            better = f"{self.amount} {word} than {rival}"
        return f"{better} for {_part(self.alone)} its compute"


def rivals(run: Run, family: str, goal: Goal) -> list[Rivals]:
    """At each size the best branch and the rival of a family, largest first."""
    decides = goal.measure(run)
    found = []
    for percent in percents(run):
        ours = [v for v in finished(branches(run, percent)) if decides.over_seeds(v)]
        other = at(run, family, percent)
        if not ours or other is None:
            continue
        # Chosen without the test part, on which it is compared.
        best = (min if goal.less else max)(ours, key=goal.of_part("validation").mean)
        paired = paired_by_seed(best, other, decides)
        ratios = [
            paired_by_seed(best, other, as_ratio(one(run))) for one in (compute, whole_compute)
        ]
        if paired.count and all(ratio.count for ratio in ratios):
            found.append(Rivals(percent, best, other, goal, paired, *(r.change for r in ratios)))
    return found


def says(run: Run, goal: Goal) -> list[str]:
    """The sentences under the first figure: the one that decides, then what else must be known."""
    narrow = rivals(run, "narrow", goal)
    if not narrow:
        return repaired(run, goal)
    taught = rivals(run, "narrow-teacher", goal)
    return [_decides(narrow), *_together(run, narrow), *repaired(run, goal), *_taught(taught)]


def repaired(run: Run, goal: Goal) -> list[str]:
    """How much of what frozen bases lose against trained ones both repairs recover."""
    decides, said = goal.measure(run), []
    for percent in percents(run):
        chosen = [at(run, family, percent) for family in ("frozen-plain", "frozen", "half")]
        ends = [decides.mean(variant) for variant in finished(chosen)]
        if len(ends) < len(chosen) or not all(map(math.isfinite, ends)):
            continue
        plain, both, trained = ends if goal.less else [-end for end in ends]
        lost = plain - trained
        if round(lost, goal.digits) > 0:
            said.append(
                f"At {percent} % both repairs recover {100 * (plain - both) / lost:.0f} % of the "
                f"{lost:.{goal.digits}f} {goal.word} that frozen bases lose against trained ones."
            )
    return said


def _decides(narrow: Sequence[Rivals]) -> str:
    seeds = min(one.paired.count for one in narrow)
    first = "Where the dense run exists anyway, a branch from it"
    if seeds < MIN_SEEDS:
        here = "in this one" if seeds == 1 else "in these"
        first = (
            f"{_seeds(seeds)} nothing; {here}, where the dense run exists anyway, a branch from it"
        )
    pays = [one for one in narrow if one.pays(whole=False)]
    fails = [one for one in narrow if one not in pays]
    parts = []
    if pays:
        parts.append(f"pays at {_listed(pays)}")
    if fails:
        parts.append(f"{'does not' if pays else 'does not pay'} at {_listed(fails)}")
    counted = [one for one in narrow if one.pays(whole=True)]
    ratios = _and([_times(one.whole) for one in narrow])
    if len(counted) == len(narrow):
        where = "it still pays at every size" if len(narrow) > 1 else "it still pays"
    elif counted:
        where = f"it pays at {_and([f'{one.percent} %' for one in counted])} alone"
    else:
        where = "it pays at none of these sizes" if len(narrow) > 1 else "it does not pay"
    return (
        f"{first} {' but '.join(parts)}; with the dense run counted {where} "
        f"({ratios} times the compute of narrow)."
    )


def _listed(found: Sequence[Rivals]) -> str:
    first, *others = found
    said = [f"{first.percent} % stored ({first.said(rival='narrow')})"]
    said += [f"{one.percent} % ({one.said(rival='narrow')})" for one in others]
    return _and(said)


def _together(run: Run, narrow: Sequence[Rivals]) -> list[str]:
    """What all sizes cost: the dense run once and its branches, or a narrow network each."""
    if len(narrow) < 2 or math.isnan(dense_compute(run)):
        return []
    alone = compute(run)
    ours = 1 + sum(alone.mean(one.ours) for one in narrow) / 100
    theirs = sum(alone.mean(one.other) for one in narrow) / 100
    return [
        f"All {len(narrow)} sizes from one dense run, that run included, take {ours:.2f} times "
        f"its compute; {len(narrow)} narrow networks take {theirs:.2f} times."
    ]


def _taught(found: Sequence[Rivals]) -> list[str]:
    """Where a narrow network with the same teacher is better, and what that costs."""
    said = [
        f"at {one.percent} % it is {one.amount} better than the branch for "
        f"{_part(1 / one.alone)} its compute"
        for one in found
        if one.gain < 0 and (one.paired.verdict() in ("few", "worse"))
    ]
    if said:
        return [f"A narrow network with the dense one as teacher: {_and(said)}."]
    if found:
        sizes = _and([f"{one.percent} %" for one in found])
        return [
            "A narrow network with the dense one as teacher is not better than the branch at "
            f"{sizes}."
        ]
    return [
        "A narrow network with the dense one as teacher, for a whole run of its own, is a rival, "
        "too; this run leaves it out (docs/log.md has it)."
    ]


def _seeds(count: int) -> str:
    return "One seed decides" if count == 1 else f"{count} seeds decide"


def _times(value: float) -> str:
    """Two digits: ``0.06``, ``4.4``, ``12``."""
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _part(value: float) -> str:
    """A ratio in words: ``6.3 % of``, ``4.4 times``."""
    return f"{100 * value:.2g} % of" if value < 0.995 else f"{_times(value)} times"


def _and(parts: Sequence[str]) -> str:
    *before, last = parts
    return f"{', '.join(before)} and {last}" if before else last
