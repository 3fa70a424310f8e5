"""The figure that decides: loss against stored size and compute, all rivals in one picture."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.language.columns import (
    bits,
    compute,
    cut_alone,
    stored_label,
    was_cut,
    whole_compute,
)
from orthotrain.lab.experiments.language.kinds import (
    branches,
    finished,
    kind_of,
    of_family,
    percents,
)
from orthotrain.lab.experiments.language.pays import says
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.scatter import Group, Marker, Over, Scatter
from orthotrain.lab.report.style import LineStyle

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
    "frozen": ("frozen bases, both repairs", 4, "P", "--"),
    "frozen-plain": ("frozen bases, plain", 4, "X", ":"),
}
_OTHERS: Final = ("others", 5, "o", "-.")
# These are told apart in the first figure; its axis is compressed above the worst of them.
_IN_VIEW: Final = ("branch", "half", "narrow", "narrow-teacher")


def family_style(variant: Variant) -> tuple[str, int, Marker, LineStyle]:
    """Title in legends, color, marker and line of the family of a variant."""
    return _FAMILIES.get(kind_of(variant).family, _OTHERS)


def _groups(run: Run) -> list[Group]:
    """The dense network, the cuts alone, then the families."""
    dense = finished([run.baseline])
    groups = [Group("dense run", None, "D", dense), *_cuts(run)]
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


def _cuts(run: Run) -> list[Group]:
    """At each size the network right after the cut, joined with what training on made of it."""
    paths = []
    for percent in percents(run):
        mine = finished(branches(run, percent))
        cut = [cut_alone(variant) for variant in filter(was_cut, mine[:1])]
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


def _knee(run: Run) -> float:
    return above(run, 0.12)


def above(run: Run, share: float) -> float:
    """The highest loss of the rivals that matter, and this share of their range above it."""
    loss = bits(run)
    ends = [loss.mean(v) for family in _IN_VIEW for v in of_family(run, family)]
    ends += [loss.mean(run.baseline)] if run.baseline is not None else []
    known = [value for value in ends if math.isfinite(value)]
    return max(known) + share * (max(known) - min(known)) if len(known) > 1 else math.nan


FIRST_FIGURE: Final = Scatter(
    "pays", "Loss against size and compute",
    "Further down and further left is better. Left: stored size, with the steps of each branch in "
    "percent of the dense run's. Middle: compute where the dense run exists anyway. Right: with "
    "the dense run, for whatever starts from it or learns from it; percent beside a point is its "
    "stored size. Compute: floating-point operations of the training, a teacher's included. The "
    "cut alone lies above the end of its branch by what training on gained since, on the part of "
    "the validation files that is looked at while training. In the grey band at the top the axis "
    "is compressed.",
    bits, _panels, _groups, says, knee=_knee,
    missing="No finished seed has a loss, a size and its compute.",
)  # fmt: skip
