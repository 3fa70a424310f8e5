"""What a spectral run lacks, one sentence each, for the page's card of missing things."""

from __future__ import annotations

from typing import Final

from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.rows import text
from orthotrain.lab.report.spectral.measures import SENSES, find, is_pooling, reference_of

# Every combination that the verdicts speak of, and how a sentence calls it.
_EXPECTED: Final = (
    (("ns",), "Newton-Schulz"),
    (("sn",), "SN"),
    (("ol",), "OL"),
    (("ow",), "OW"),
    (("nog",), "NOG"),
    (("olr",), "OLR"),
    (("nog", "sn"), "NOG + SN"),
    (("nog", "ol"), "NOG + OL"),
    (("nog", "ow"), "NOG + OW"),
    (("nog", "olr"), "NOG + OLR"),
    (("ow", "olr"), "OW + OLR"),
    (("nog", "ow", "olr"), "NOG + OW + OLR"),
    (("fixed",), "the root with a fixed norm"),
    (("nog", "fixed"), "NOG with a fixed norm"),
    (("olr", "fixed"), "OLR with a fixed norm"),
)


def missing(run: Run) -> list[str]:
    """Variants that were not run, references without a result, records that are not there."""
    notes = []
    if run.baseline is None:
        notes.append(
            f"There is no variant '{run.baseline_name}', the baseline named in run.json, so "
            "nothing is compared with a network without the layer."
        )
    root = find(run)
    if root is None:
        notes.append(
            "There is no variant with the root alone (treatments ['root'] in run.json), so no "
            "treatment has anything to be held against."
        )
    absent = [name for wanted, name in _EXPECTED if find(run, *wanted) is None]
    if absent:
        notes.append(f"Not part of this run, so nothing is said about: {', '.join(absent)}.")
    for variant in run.variants:
        notes += _of_variant(run, variant)
    return notes


def _of_variant(run: Run, variant: Variant) -> list[str]:
    if not variant.finished:
        return []
    notes = []
    if variant is not run.baseline and not variant.treatments:
        notes.append(
            f"{variant.title}: run.json names no treatments, so it is in the tables but in no "
            "comparison."
        )
    unknown = [sense.title for sense in SENSES if not _recorded(variant, sense.key)]
    if variant is run.baseline and is_pooling(run):
        unknown = []  # Average pooling forms no covariance.
    if len(unknown) == len(SENSES):
        notes.append(f"{variant.title}: no condition of a covariance was recorded.")
    elif unknown:
        notes.append(f"{variant.title}: no condition {' and none '.join(unknown)}.")
    layers = {
        text(row, "layer")
        for seed in variant.finished
        for row in seed.rows.get("condition", ())
        if row.get("what") == "covariance"
    }
    if len(layers) > 1:
        notes.append(
            f"{variant.title}: the covariances of {len(layers)} layers were recorded; numbers are "
            "their geometric means."
        )
    return notes + _unpaired(run, variant)


def _recorded(variant: Variant, key: str) -> bool:
    return any(
        row.get("what") == "covariance" and key in row and (row[key] is not None or "float" in key)
        for seed in variant.finished
        for row in seed.rows.get("condition", ())
    )


def _unpaired(run: Run, variant: Variant) -> list[str]:
    """Seeds that only one of a pair finished."""
    other = reference_of(run, variant)
    if other is None or not other.finished:
        return []
    mine, theirs = ({seed.seed for seed in v.finished} for v in (variant, other))
    if mine == theirs:
        return []
    return [
        f"{variant.title} and {other.title} finished {len(mine & theirs)} seeds in common of "
        f"{len(mine)} and {len(theirs)}; only those are compared."
    ]
