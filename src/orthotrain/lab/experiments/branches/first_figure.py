"""The figure that decides: all rivals over stored size and compute, in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.branches.columns import (
    compute,
    cut_alone,
    stored_label,
    was_cut,
    whole_compute,
)
from orthotrain.lab.experiments.branches.goal import Goal
from orthotrain.lab.experiments.branches.kinds import (
    branches,
    finished,
    kind_of,
    of_family,
    percents,
)
from orthotrain.lab.experiments.branches.pays import says
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.scatter import Group, Marker, Over, Scatter
from orthotrain.lab.report.style import LineStyle, Look, Theme

# --- families -----------------------------------------------------------------------------------

# Family: title in the legend, color, marker, line of its curves. One color for each idea; a narrow
# network with less compute has the same color and another marker.
_FAMILIES: Final[dict[str, tuple[str, int, Marker, LineStyle]]] = {
    "branch": ("branch after the dense run", 0, "o", "-"),
    "branch-alone": ("branch, no teacher", 0, "D", ":"),
    "half": ("cut at half of the run", 2, "^", "-"),
    "narrow": ("narrow from scratch", 1, "s", "-"),
    "narrow-short": ("narrow, compute of the branch", 1, "v", "--"),
    "narrow-teacher": ("narrow with teacher", 3, "s", "-"),
    "narrow-teacher-short": ("narrow with teacher, short", 3, "v", "--"),
    "oialr-paper": ("OIALR, published", 4, "*", "-"),
    "oialr-tuned": ("OIALR, tuned", 4, "^", "-."),
    "frozen": ("frozen bases, both repairs", 4, "P", "--"),
    "frozen-plain": ("frozen bases, plain", 4, "X", ":"),
}
_OTHERS: Final = ("others", 5, "o", "-.")
# The first figure shows these at full scale. Its axis is compressed above the worst of them.
_IN_VIEW: Final = ("branch", "half", "narrow", "narrow-teacher")


def family_style(variant: Variant) -> tuple[str, int, Marker, LineStyle]:
    """Title in legends, color, marker and line of the family of a variant."""
    return _FAMILIES.get(kind_of(variant).family, _OTHERS)


def _groups(run: Run, goal: Goal) -> list[Group]:
    """The dense network, the cuts alone, then the families."""
    dense = finished([run.baseline])
    groups = [Group("dense run", None, "D", dense), *_cuts(run, goal)]
    for family, (title, color, marker, _) in _FAMILIES.items():
        mine = [v for v in of_family(run, family) if v is not run.baseline]
        paths = [] if family == "branch" else [mine]
        groups.append(
            Group(title, color, marker, mine, paths=paths, dotted=family.endswith("-short"))
        )
    others = [
        v for v in run.variants
        if v is not run.baseline and kind_of(v).family not in _FAMILIES
    ]  # fmt: skip
    title, color, marker, _ = _OTHERS
    return [*groups, Group(title, color, marker, others)]


def _cuts(run: Run, goal: Goal) -> list[Group]:
    """At each size the network right after the cut, joined with what training on made of it."""
    paths = []
    for percent in percents(run):
        mine = finished(branches(run, percent))
        cut = [cut_alone(variant, goal) for variant in mine[:1] if was_cut(variant, goal)]
        paths.append([*cut, *mine])
    alone = [v for path in paths for v in path if v.name.endswith("-cut")]
    _title, color, marker, _ = _FAMILIES["branch"]
    return [Group("the cut alone", color, marker, alone, hollow=True, paths=paths)]


# --- the first figure ---------------------------------------------------------------------------


def _panels(run: Run) -> list[Over]:
    return [
        Over(replace(sizes(run)[1], title="Stored size"), _steps_label, zero=False),
        Over(replace(compute(run), title="Compute, dense run excluded"), stored_label),
        Over(whole_compute(run), stored_label),
    ]


def _steps_label(variant: Variant) -> str:
    """How long a branch is; its size is on the axis."""
    steps = kind_of(variant).steps
    return f"+{steps} %" if steps and not variant.name.endswith("-cut") else ""


def beyond(run: Run, goal: Goal, share: float) -> float:
    """The worst end of the rivals that matter, and this share of their range beyond it."""
    decides = goal.measure(run)
    ends = [decides.mean(v) for family in _IN_VIEW for v in of_family(run, family)]
    ends += [decides.mean(run.baseline)] if run.baseline is not None else []
    known = [value for value in ends if math.isfinite(value)]
    if len(known) < 2:
        return math.nan
    low, high = min(known), max(known)
    return high + share * (high - low) if goal.less else low - share * (high - low)


def first_figure(goal: Goal, *, cut: str) -> Scatter:
    """The figure for what decides.

    Args:
        goal: What decides.
        cut: A sentence on where the cut alone lies.
    """
    better, band = ("down", "top") if goal.less else ("up", "bottom")
    return Scatter(
        "pays", f"{goal.name.capitalize()} against size and compute",
        f"Further {better} and further left is better. Left: stored size, with the steps of each "
        "branch in percent of the dense run's. Middle: compute where the dense run exists anyway. "
        "Right: with the dense run, for whatever starts from it or learns from it; percent beside "
        "a point is its stored size. Compute: floating-point operations of the training, a "
        f"teacher's included, matrix decompositions of a cut left out. {cut} In the grey band at "
        f"the {band} the axis is compressed.",
        goal.measure, _panels, lambda run: _groups(run, goal), lambda run: says(run, goal),
        knee=lambda run: beyond(run, goal, 0.12),
        missing=f"No finished seed has a {goal.name}, a size and its compute.",
    )  # fmt: skip


def family_looks(run: Run, theme: Theme) -> dict[str, Look]:
    """The color of the family; of several branches of a size, one line style each."""
    lines: Sequence[LineStyle] = ("-", "--", "-.")
    chosen = {}
    for variant in run.variants:
        _, color, _, line = family_style(variant)
        kind = kind_of(variant)
        if kind.family == "branch":
            line = lines[branches(run, kind.percent).index(variant) % len(lines)]
        shade = theme.ink if variant is run.baseline else theme.cycle[color]
        chosen[variant.name] = Look(variant.title, shade, "-" if variant is run.baseline else line)
    return chosen
