"""The condition of the covariance at five moments of a training, in every sense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.spectral.columns import LARGEST, RANK, SENSES
from orthotrain.lab.experiments.watched import reading
from orthotrain.lab.report.load import Run, SeedRun
from orthotrain.lab.report.measures import mean, typical
from orthotrain.lab.report.rows import Row, field, number
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.tables import Cell, Table, mean_cell

#: Shares of a run. Four are where the published curves were read, at steps 1,000, 20,000, 60,000
#: and 130,000 of 136,850; the fourth of the five lies between.
MOMENTS: Final = (0.01, 0.15, 0.45, 0.7, 0.95)
# A moment is what was recorded within this share of the run around it.
_REACH: Final = 0.025


def moments(run: Run) -> Table:
    """One row per variant and moment."""
    rows = [
        (Cell(variant.title), Cell(f"{100 * share:.0f}"), *(mean_cell(variant, m) for m in at))
        for variant in run.variants
        for share in MOMENTS
        if any((at := _measures(share))[0].over_seeds(variant).values)
    ]
    measures = _measures(MOMENTS[0])
    return Table(
        "moments",
        "Five moments",
        ("Variant", "% of the run", *(m.heading for m in measures)),
        ("variant", "percent_of_the_run", *(m.column for m in measures)),
        tuple(rows),
        ("", "", *(m.better for m in measures)),
        "No condition of a covariance was recorded.",
        f"Of what was recorded within {100 * _REACH:g} % of the run around each moment: geometric "
        "means, arithmetic ones of the rank, over records and seeds.",
    )


def _measures(share: float) -> list[Measure]:
    logarithmic = [_at(share, m, reading(m.key), typical) for m in (*SENSES, LARGEST)]
    return [*logarithmic, _at(share, replace(RANK, aside=lambda variant: ""), field("rank"), mean)]


def _at(
    share: float,
    measure: Measure,
    value: Callable[[Row], float],
    average: Callable[[list[float]], float],
) -> Measure:
    def read(seed: SeedRun) -> float:
        found = [row for row in seed.of_kind("condition") if row.get("what") == "covariance"]
        last = max((number(row, "step") for row in found), default=0.0)
        near = [r for r in found if abs(number(r, "step") - share * last) <= _REACH * last]
        return average([x for row in near if (x := value(row)) == x])

    return replace(measure, read=read, aside=lambda variant: "")
