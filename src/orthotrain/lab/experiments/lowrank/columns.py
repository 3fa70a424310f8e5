"""What the page of low-rank experiments measures, and which of its variants is which."""

from __future__ import annotations

from typing import Final

from orthotrain.lab.experiments.sizes import sizes
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.measures import (
    SECONDS,
    TRAINING_MEMORY,
    accuracy,
    raw,
    result,
    step_time,
)
from orthotrain.lab.report.stats import Measure

# A narrower dense network whose name begins so stores as much as a low-rank one.
_RIVAL: Final = "narrow"


# --- which variant is which ---------------------------------------------------------------------


def rival(run: Run) -> Variant | None:
    """The narrower dense network of the same stored size."""
    return next((v for v in run.variants if v.name.startswith(_RIVAL)), None)


# --- columns ------------------------------------------------------------------------------------

ACCURACY: Final = accuracy("test")
STEP: Final = step_time("step_ms_final", "Time per step at the end")
COSTS: Final = (
    step_time("step_ms_dense_phase", "Time per step before the switch"),
    STEP,
    SECONDS,
    TRAINING_MEMORY,
    result("switch_step", "Step of the switch", digits=0),
)


def results(run: Run) -> list[Measure]:
    """Accuracies and sizes."""
    return [ACCURACY, accuracy("validation"), *sizes(run)]


SEED_NUMBERS: Final = raw(
    *("validation_accuracy", "test_accuracy", "validation_loss", "test_loss"),
    *("trainable", "stored", "stored_folded", "dense"),
    *("step_ms_dense_phase", "step_ms_final", "weight_bytes", "gradient_bytes", "state_bytes"),
    *("training_bytes", "peak_rss_bytes", "switch_step", "steps", "seconds"),
)
