"""What the page of low-rank experiments measures, and which of its variants is which."""

from __future__ import annotations

import math
from typing import Final

from orthotrain.lab.experiments.branches.columns import compute, dense_compute, whole_compute
from orthotrain.lab.experiments.branches.goal import Goal
from orthotrain.lab.experiments.branches.kinds import kind_of
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
from orthotrain.lab.report.ranks import factored
from orthotrain.lab.report.stats import Measure

# --- which variant is which ---------------------------------------------------------------------


def rival(run: Run) -> Variant | None:
    """The narrower dense network of the same stored size."""
    return next((v for v in run.variants if kind_of(v).family == "narrow"), None)


def tuned(run: Run) -> list[Variant]:
    """The low-rank networks that the narrow one without a size of its own is the rival of."""
    return [v for v in run.variants if factored(v) and not kind_of(v).percent]


# --- columns ------------------------------------------------------------------------------------

GOAL: Final = Goal("accuracy", accuracy, word="points", digits=2, name="accuracy", scale=100.0)
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
    """Accuracies, sizes, and compute where it was counted."""
    counted = [] if math.isnan(dense_compute(run)) else [compute(run), whole_compute(run)]
    return [ACCURACY, accuracy("validation"), *sizes(run), *counted]


SEED_NUMBERS: Final = raw(
    *("validation_accuracy", "test_accuracy", "validation_loss", "test_loss"),
    *("trainable", "stored", "stored_folded", "dense"),
    *("step_ms_dense_phase", "step_ms_final", "weight_bytes", "gradient_bytes", "state_bytes"),
    *("training_bytes", "peak_rss_bytes", "switch_step", "steps", "seconds"),
    *("compute", "compute_before"),
)
