"""What the page of language models measures: bits per byte, sizes, times and memory."""

from __future__ import annotations

from typing import Final

from orthotrain.lab.experiments.branches.goal import Goal
from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.load import Run
from orthotrain.lab.report.measures import SECONDS, TRAINING_MEMORY, raw, result, step_time
from orthotrain.lab.report.stats import Measure


def _bits(part: str) -> Measure:
    return result(
        f"{part}_bits", f"{part.capitalize()} loss", unit="bits per byte", digits=3, better="less"
    )


BITS: Final = Goal("bits", _bits, word="bits", digits=3, name="loss")


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


SEED_NUMBERS: Final = raw(
    *("test_bits", "validation_bits", "stored", "stored_folded", "dense", "trainable"),
    *("compute", "compute_before", "switch_step", "steps", "seconds"),
    *("step_ms_dense_phase", "step_ms_final", "weight_bytes", "gradient_bytes", "state_bytes"),
    *("training_bytes", "peak_rss_bytes"),
)
