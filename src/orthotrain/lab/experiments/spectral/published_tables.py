"""What was published about a spectral layer, with the numbers of a run beside the same methods."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from orthotrain.lab.experiments.spectral.columns import (
    SENSES,
    TEST_ERROR,
    VALIDATION_ERROR,
    find,
    is_pooling,
)
from orthotrain.lab.experiments.spectral.published import (
    BASELINE_TWIN,
    FINE,
    FINE_HEAD,
    POOLING,
    POOLING_HEAD,
    POOLING_NOTE,
    PUBLISHED_CONDITIONS,
    PUBLISHED_STEPS,
    WHITENING,
    WHITENING_HEAD,
    WHITENING_NOTE,
    PublishedRow,
)
from orthotrain.lab.experiments.watched import condition_panel
from orthotrain.lab.report.figures import Panel, Reference
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.page import Card
from orthotrain.lab.report.rows import field
from orthotrain.lab.report.stats import MISSING, Spread, short
from orthotrain.lab.report.tables import Cell, Own, Table, mean_cell


def twin_of(run: Run, twin: frozenset[str] | None) -> Variant | None:
    """The variant of this run that is a published method."""
    if twin is None:
        return None
    return run.baseline if twin == BASELINE_TWIN else find(run, *twin)


def _published(run: Run, name: str, head: tuple[str, ...], known: Sequence[PublishedRow]) -> Table:
    """What was published, with the number of this run where a method is the same."""
    ours = any(row.twin is not None for row in known)
    measure = TEST_ERROR if is_pooling(run) else VALIDATION_ERROR
    rows = []
    for row in known:
        cells = [Cell(row.name), *(Cell(cell or MISSING, exact=cell) for cell in row.cells)]
        if ours:
            twin = twin_of(run, row.twin)
            empty = Cell(MISSING, Spread.of(()))
            cells.append(empty if twin is None else mean_cell(twin, measure))
        rows.append(tuple(cells))
    keys = tuple(re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") for title in head)
    return Table(
        name,
        "Published",
        ("Published method", *head, *((f"This run: {measure.heading}",) if ours else ())),
        ("method", *keys, *((f"this_run_{measure.key}",) if ours else ())),
        tuple(rows),
    )


def _published_conditions(run: Run) -> Table:
    """The digitised condition curves, and this run at the end in all four senses."""
    rows = []
    for known in PUBLISHED_CONDITIONS:
        twin = twin_of(run, known.twin)
        cells = [Cell(known.name), *(Cell(short(v), exact=repr(v)) for v in known.values)]
        cells += [
            Cell(MISSING, Spread.of(())) if twin is None else mean_cell(twin, sense)
            for sense in SENSES
        ]
        rows.append(tuple(cells))
    return Table(
        "published-conditions",
        "Published conditions",
        (
            *("Published method", *(f"Step {step // 1000}k" for step in PUBLISHED_STEPS)),
            *(f"This run: {sense.title}" for sense in SENSES),
        ),
        (
            *("method", *(f"step_{step}" for step in PUBLISHED_STEPS)),
            *(f"this_run_{sense.column}" for sense in SENSES),
        ),
        tuple(rows),
    )


def published_cards(run: Run) -> list[Card]:
    """The tables of what was published about this kind of layer."""
    if is_pooling(run):
        pooling = Own(lambda run: _published(run, "published", POOLING_HEAD, POOLING))
        fine = Own(lambda run: _published(run, "published-fine", FINE_HEAD, FINE))
        return [Card("Published numbers", (pooling, fine), POOLING_NOTE)]
    whitening = Own(lambda run: _published(run, "published", WHITENING_HEAD, WHITENING))
    return [Card("Published numbers", (whitening, Own(_published_conditions)), WHITENING_NOTE)]


def published_panels(run: Run) -> list[Panel]:
    """The published condition curves, and those of this run in naive float32."""
    twins = {known.name: twin_of(run, known.twin) for known in PUBLISHED_CONDITIONS}
    lines = tuple(
        Reference(
            known.name, np.array(PUBLISHED_STEPS), np.array(known.values),
            like=twin.name if (twin := twins[known.name]) is not None else "",
        )
        for known in PUBLISHED_CONDITIONS
    )  # fmt: skip
    ours = [variant for variant in twins.values() if variant is not None]
    naive = condition_panel(
        "covariance", "condition_float32", "This run, naive in float32", lambda run: ours
    )
    title = "Published (digitised, ±10 %)"
    return [Panel(title, "", field(""), lambda run: (), log=True, beside=lines), naive]
