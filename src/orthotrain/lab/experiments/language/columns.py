"""What the page of language models measures: bits per byte, sizes, and compute in dense runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.language.kinds import kind_of
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.measures import (
    SECONDS,
    TRAINING_MEMORY,
    raw,
    result,
    step_time,
)
from orthotrain.lab.report.rows import Row, number
from orthotrain.lab.report.stats import Measure

_UNIT: Final = "% of the dense run"

# --- loss ---------------------------------------------------------------------------------------


def _bits(split: str) -> Measure:
    return result(
        f"{split}_bits", f"{split.capitalize()} loss", unit="bits per byte", digits=3, better="less"
    )


def bits(run: Run) -> Measure:
    """The loss that decides: on the test files where any seed read them, else on validation."""
    test = _bits("test")
    read = any(test.over_seeds(variant) for variant in run.variants)
    return test if read else _bits("validation")


# --- compute ------------------------------------------------------------------------------------


def dense_compute(run: Run) -> float:
    """Floating-point operations of the dense run, 100 % everywhere on the page; NaN if unknown.

    Those of the baseline where it finished, else the most that a variant says came before it.
    """
    finished = run.baseline.finished if run.baseline is not None else ()
    known = [seed.final("compute") for seed in finished] or [
        seed.final("compute_before") for variant in run.variants for seed in variant.finished
    ]
    return max((value for value in known if value > 0), default=math.nan)


def compute(run: Run) -> Measure:
    """Of this training itself."""
    alone = result(
        "compute", "Compute", scale=100.0 / dense_compute(run), unit=_UNIT, digits=1, better="less"
    )
    return alone.named("compute_percent_of_dense")


def whole_compute(run: Run) -> Measure:
    """Of this training and of the dense one that it starts from or learns from."""
    scale = 100.0 / dense_compute(run)

    def read(seed: SeedRun) -> float:
        return scale * (seed.final("compute") + seed.final("compute_before"))

    return Measure(
        "whole_compute_percent_of_dense", "Compute, dense run included", read, _UNIT, 1, "less"
    )


def as_ratio(measure: Measure) -> Measure:
    """The same compared as a ratio of two variants."""
    return replace(measure, logarithmic=True)


# --- the cut alone ------------------------------------------------------------------------------


def cut_of(seed: SeedRun) -> Row | None:
    """The first cut of a training, where its loss was measured right after."""
    return next((row for row in seed.of_kind("cut") if math.isfinite(number(row, "bits"))), None)


def cut_alone(variant: Variant) -> Variant:
    """The network of a branch right after its cut, as a variant of its own.

    While training only a part of the validation files is looked at. So the loss of the cut is
    the one at the end plus what training on gained since the cut, both on that same part. Its
    compute is the share of the branch's steps up to the cut.
    """

    def seeds() -> Iterator[SeedRun]:
        for seed in variant.finished:
            cut, end = cut_of(seed), _end(seed)
            if cut is None or seed.result is None or math.isnan(end):
                continue
            gained, steps = number(cut, "bits") - end, seed.final("steps")
            share = number(cut, "step") / steps if steps > 0 else 0.0
            changed: dict[str, object] = {
                key: seed.final(key) + gained
                for key in ("validation_bits", "test_bits")
                if math.isfinite(seed.final(key))
            }
            changed["compute"] = seed.final("compute") * min(share, 1.0)
            yield replace(seed, result={**seed.result, **changed})

    return replace(
        variant, name=f"{variant.name}-cut", title=f"{variant.title}, the cut alone",
        seeds=tuple(seeds()),
    )  # fmt: skip


def _end(seed: SeedRun) -> float:
    """The loss of the last look at the validation files while training."""
    looks = [number(row, "bits") for row in seed.of_kind("eval")]
    return looks[-1] if looks else math.nan


def _at_cut(key: str, title: str) -> Measure:
    def read(seed: SeedRun) -> float:
        cut = cut_of(seed)
        return math.nan if cut is None else number(cut, key)

    return Measure(f"cut_{key}", title, read, "bits per byte", 3, "less")


# --- tables -------------------------------------------------------------------------------------


def results(run: Run) -> list[Measure]:
    """Loss, size and compute, the numbers of the first figure."""
    return [bits(run), sizes(run)[1], compute(run), whole_compute(run)]


def costs(run: Run) -> list[Measure]:
    """Sizes, times and memory."""
    trained, _, folded = sizes(run)
    return [
        trained,
        folded,
        step_time("step_ms_dense_phase", "Time per step before the cut"),
        step_time("step_ms_final", "Time per step at the end"),
        SECONDS,
        TRAINING_MEMORY,
    ]


CUTS: Final = (
    result("switch_step", "Step of the cut", digits=0),
    _at_cut("bits_before", "Before the cut"),
    _at_cut("bits", "Right after the cut"),
    Measure("end_bits", "At the end", _end, "bits per byte", 3, "less"),
)


def was_cut(variant: Variant) -> bool:
    """Whether any finished seed recorded a cut."""
    return any(cut_of(seed) is not None for seed in variant.finished)


SEED_NUMBERS: Final = raw(
    *("test_bits", "validation_bits", "stored", "stored_folded", "dense", "trainable"),
    *("compute", "compute_before", "switch_step", "steps", "seconds"),
    *("step_ms_dense_phase", "step_ms_final", "weight_bytes", "gradient_bytes", "state_bytes"),
    *("training_bytes", "peak_rss_bytes"),
)


def stored_label(variant: Variant) -> str:
    """The stored size that a variant aims at, such as ``50 %``; empty without one."""
    percent = kind_of(variant).percent
    return f"{percent} %" if percent else ""
