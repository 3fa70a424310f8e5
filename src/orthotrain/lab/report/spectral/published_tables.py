"""Tables of what was published about a spectral layer, with our number beside the same method."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.paired import over_seeds
from orthotrain.lab.report.spectral.measures import (
    SENSES,
    TEST_ERROR,
    VALIDATION_ERROR,
    find,
    is_pooling,
)
from orthotrain.lab.report.spectral.published import (
    BASELINE_TWIN,
    FINE,
    FINE_HEAD,
    POOLING,
    POOLING_HEAD,
    PUBLISHED_CONDITIONS,
    PUBLISHED_STEPS,
    WHITENING,
    WHITENING_HEAD,
    PublishedRow,
)
from orthotrain.lab.report.spectral.tables import condition_cell, short
from orthotrain.lab.report.tables import MISSING, Cell, Spread, Table


def twin_of(run: Run, twin: frozenset[str] | None) -> Variant | None:
    """The variant of ours that is a published method."""
    if twin is None:
        return None
    return run.baseline if twin == BASELINE_TWIN else find(run, *twin)


def published_tables(run: Run) -> tuple[Table, ...]:
    """What was published about this kind of layer, with our number where a method is the same."""
    if is_pooling(run):
        pooling = _published(run, "published", POOLING_HEAD, POOLING)
        return (pooling, _published(run, "published-fine", FINE_HEAD, FINE))
    whitening = _published(run, "published", WHITENING_HEAD, WHITENING)
    return (whitening, published_conditions_table(run))


def _published(run: Run, name: str, head: tuple[str, ...], known: Sequence[PublishedRow]) -> Table:
    ours = any(row.twin is not None for row in known)
    measure = TEST_ERROR if is_pooling(run) else VALIDATION_ERROR
    rows = []
    for row in known:
        cells = [Cell(row.name), *(Cell(cell or MISSING, exact=cell) for cell in row.cells)]
        if ours:
            twin = twin_of(run, row.twin)
            spread = Spread.of(()) if twin is None else over_seeds(twin, measure)
            cells.append(Cell(spread.show(2), spread))
        rows.append(tuple(cells))
    said = f"This run: {measure.title}"
    keys = tuple(re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") for title in head)
    return Table(
        name,
        ("Published method", *head, *((said,) if ours else ())),
        ("method", *keys, *((f"this_run_{measure.key}_percent",) if ours else ())),
        tuple(rows),
    )


def published_conditions_table(run: Run) -> Table:
    """The digitised condition curves, and ours at the end in all four senses."""
    rows = []
    for known in PUBLISHED_CONDITIONS:
        twin = twin_of(run, known.twin)
        cells = [Cell(known.name), *(Cell(short(v), exact=repr(v)) for v in known.values)]
        cells += [
            Cell(MISSING, Spread.of(())) if twin is None else condition_cell(twin, sense)
            for sense in SENSES
        ]
        rows.append(tuple(cells))
    steps = tuple(f"Step {step // 1000}k" for step in PUBLISHED_STEPS)
    return Table(
        "published-conditions",
        ("Published method", *steps, *(f"This run, {sense.title}" for sense in SENSES)),
        (
            *("method", *(f"step_{step}" for step in PUBLISHED_STEPS)),
            *(f"this_run_log10_{sense.key}" for sense in SENSES),
        ),
        tuple(rows),
    )


def settings_note(run: Run) -> str:
    """With which settings the published numbers were made, and what they can be held against."""
    if is_pooling(run):
        return (
            "Published: ResNet-50 on ImageNet, 60 epochs, batch 256, top-1 error with "
            "covariance pooling alone and in the hybrid of two gradients; fine-grained: the best "
            "accuracy on birds, dogs and cars. None of them is of NOG, OLR or orthogonal weights. "
            "This run has other data, another width and fewer steps: its column shows how far "
            "apart the same methods are here, not the same number again."
        )
    return (
        "Published: validation error, mean and deviation of 5 trainings of 350 epochs with batch "
        "128, and the time of one root of a 64x64 matrix forward and backward. They are of "
        "methods to take the root; no accuracy with NOG, OLR or orthogonal weights was available, "
        "so none is printed. The condition numbers are read out of a figure to about 10 %, and in "
        "which sense and precision they were computed is not known. This run has its own number "
        "of images, width and steps (see Settings): compare the order, not the heights."
    )
