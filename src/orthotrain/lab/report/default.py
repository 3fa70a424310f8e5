"""The page of a run whose experiment has none of its own: results, costs, curves and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orthotrain.lab.report.claims import Claim, each
from orthotrain.lab.report.figures import Curves, FigureOf, Panel, Values
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.measures import (
    PEAK_MEMORY,
    SECONDS,
    TRAINING_MEMORY,
    accuracy,
    group,
    raw,
    result,
    step_time,
)
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.ranks import RANK_MAPS, factored, ranks_table
from orthotrain.lab.report.rows import field
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.tables import BySeed, ByVariant, Compared, Own

_KNOWN: Final = (
    accuracy("test"),
    accuracy("validation"),
    result("test_loss", "Test loss", digits=4, better="less"),
    result("validation_loss", "Validation loss", digits=4, better="less"),
    result("test_bits", "Test bits per byte", digits=3, better="less"),
    result("validation_bits", "Validation bits per byte", digits=3, better="less"),
    result("trainable", "Trained numbers", digits=0, better="less"),
    result("stored", "Stored numbers", digits=0, better="less"),
)
_COSTS: Final = (
    step_time("step_ms_final", "Time per step at the end"),
    step_time(),
    SECONDS,
    TRAINING_MEMORY,
    PEAK_MEMORY,
)


def _found(run: Run, known: Sequence[Measure]) -> list[Measure]:
    """Those that any seed has."""
    return [m for m in known if any(m.over_seeds(variant) for variant in run.variants)]


def _score(key: str) -> Measure:
    title = key.replace("_", " ")
    return Measure(key, title, lambda seed: group(seed, "scores").get(key, float("nan")))


def results(run: Run) -> list[Measure]:
    """Known results, then every score that a seed recorded."""
    scores = {k: None for v in run.variants for s in v.finished for k in group(s, "scores")}
    return [*_found(run, _KNOWN), *map(_score, scores)]


def _costs(run: Run) -> list[Measure]:
    return _found(run, _COSTS)


def _numbers(run: Run) -> list[Measure]:
    keys = {
        key: None
        for variant in run.variants
        for seed in variant.finished
        for key, value in (seed.result or {}).items()
        if isinstance(value, int | float) and key != "seed"
    }
    return [*raw(*keys), *(m for m in results(run) if m not in _KNOWN)]


def _claims(run: Run) -> list[Claim]:
    baseline, compared = run.baseline, results(run)
    deciding = [m for m in compared if m.better][:1]
    if baseline is None or not deciding:
        return []
    title = deciding[0].title.lower()
    question = f"Which variant has a better {title} than {baseline.title}?"
    return [Claim(question, each(run.variants, baseline), deciding)]


def pairs_with_baseline(run: Run) -> list[tuple[Variant, Variant]]:
    """Every finished variant and the baseline."""
    base = run.baseline
    return [] if base is None else [(v, base) for v in run.variants if v.finished and v is not base]


def _panels(run: Run) -> list[Panel]:
    accuracies = field("accuracy", split="validation", scale=100.0)
    panels = [
        Panel("Training loss", "step", field("loss")),
        Panel("Validation accuracy (%)", "eval", accuracies, bins=None, late="bottom"),
        Panel("Validation loss", "eval", field("loss", split="validation"), bins=None),
        Panel("Validation bits per byte", "eval", field("bits", split="validation"), bins=None),
    ]
    return [panel for panel in panels if panel.curves(run)]


_SIZES: Final = tuple(
    Panel(title, "size", field(key), reduce="hold", zero=True)
    for title, key in (("Stored numbers", "stored"), ("Trained numbers", "trainable"))
)


def _watched(run: Run) -> list[FigureOf]:
    """What methods recorded of layers, where any did."""
    found: list[FigureOf] = []
    if any(map(factored, run.variants)):
        found.append(RANK_MAPS)
    if any(seed.of_kind("stability") for variant in run.variants for seed in variant.seeds):
        found.append(_STABILITY)
    return found


_STABILITY: Final = Curves(
    "stability", "Basis stability",
    "Mean over layers. 1 means the same orthogonal basis as at the comparison before.",
    (Panel("Basis stability", "stability", field("stability"), bins=None, reduce="mean"),),
    columns=1,
)  # fmt: skip

_SIZE: Final = Curves("size", "Size while training", "Numbers stored and trained.", _SIZES)
_FIGURES: Final = (
    Values("values", "Results of every variant", "The dotted line is the baseline.", results),
    Curves("curves", "Training curves", "Each point is one stretch of training.", _panels),
    _SIZE,
)

#: Of the file of one training, which has no result.
WATCHED: Final = Page(
    results=(), figures=lambda run: [_SIZE, *_watched(run)], details=(Own(ranks_table),)
)

PAGE: Final = Page(
    results=(
        ByVariant("results", "Results", results, seeds=True),
        ByVariant("costs", "Time and memory", _costs),
    ),
    closing={
        "test_accuracy_percent": "test %",
        "validation_accuracy_percent": "validation %",
        "test_bits": "test bits",
        "validation_bits": "validation bits",
        "stored": "stored",
        "step_ms_final": "ms per step",
        "step_ms": "ms per step",
    },
    claims=_claims,
    figures=lambda run: [*_FIGURES, *_watched(run)],
    details=(Compared(pairs_with_baseline, results), BySeed(_numbers)),
)
