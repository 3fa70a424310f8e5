"""Which variant is which, by its name: branches, narrow networks, the published method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from orthotrain.lab.report.load import Run, Variant


@dataclass(frozen=True)
class Kind:
    """What the name of a variant says.

    Attributes:
        family: Such as ``branch`` or ``narrow-teacher-short``; the whole name where unknown.
        percent: Stored size it aims at, in percent of the dense network; 0 without one.
        steps: Steps of a branch in percent of the dense run's; 0 for all others.
    """

    family: str
    percent: int = 0
    steps: int = 0


_NAME: Final = re.compile(
    r"(?P<family>branch|half|narrow|frozen)-(?P<percent>\d+)(-(?P<steps>\d+))?(?P<tail>(-[a-z]+)*)"
)


def kind_of(variant: Variant) -> Kind:
    """Read the name of a variant."""
    found = _NAME.fullmatch(variant.name)
    if found is None:
        return Kind(variant.name)
    return Kind(found["family"] + found["tail"], int(found["percent"]), int(found["steps"] or 0))


def of_family(run: Run, family: str) -> list[Variant]:
    """The variants of a family, the smallest first, of a size the shortest branch first."""
    mine = [variant for variant in run.variants if kind_of(variant).family == family]
    return sorted(mine, key=lambda v: (kind_of(v).percent, kind_of(v).steps))


def at(run: Run, family: str, percent: int) -> Variant | None:
    """The variant of a family at a size; ``None`` without one."""
    return next((v for v in of_family(run, family) if kind_of(v).percent == percent), None)


def percents(run: Run) -> list[int]:
    """Every stored size that a variant aims at, the largest first."""
    return sorted({kind_of(v).percent for v in run.variants} - {0}, reverse=True)


def branches(run: Run, percent: int) -> list[Variant]:
    """The branches of a size that have a teacher, the shortest first."""
    return [v for v in of_family(run, "branch") if kind_of(v).percent == percent]


def finished(variants: Sequence[Variant | None]) -> list[Variant]:
    """Those that exist and have a finished seed."""
    return [variant for variant in variants if variant is not None and variant.finished]
