"""What a result says of sizes and times, from the final model and the lines of the run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from orthotrain.diagnostics.writers import size_fields
from orthotrain.lab.run.trainer import Line
from orthotrain.methods.handle import Handle
from orthotrain.methods.summary import Row, Summary

# "At the end" of a run, for times, is its last tenth.
_FINAL_FRACTION = 0.1


def sizes_and_times(summary: Summary, lines: Sequence[Line], *, total_steps: int) -> dict[str, Any]:
    """Fields of result.json: sizes, bytes, the step of the switch, and times before and after it.

    Args:
        summary: Of the attached methods, after the last step.
        lines: Of metrics.jsonl.
        total_steps: Optimizer steps of the training.
    """
    sizes = size_fields(summary)
    switch = next(
        (line["step"] for line in lines if line["kind"] == "rank" and line["form"] != "dense"),
        None,
    )
    times = [(line["step"], line["step_ms"]) for line in lines if line["kind"] == "step"]
    dense = [ms for step, ms in times if switch is None or step <= switch]
    final = [ms for step, ms in times if step > (1 - _FINAL_FRACTION) * total_steps]
    return {
        **sizes,
        "stored_folded": sizes["stored"] - sum(map(_saved_by_folding, summary.rows)),
        "training_bytes": sum(sizes[f"{name}_bytes"] for name in ("weight", "gradient", "state")),
        "step_ms_dense_phase": statistics.median(dense) if dense else None,
        "step_ms_final": statistics.median(final) if final else None,
        "switch_step": switch,
    }


def hook_shares(handle: Handle, *, steps: int, step_ms: float) -> dict[str, float]:
    """Seconds that the hooks of each method took, as a share of the time of its steps.

    Args:
        handle: The attached methods.
        steps: Optimizer steps since they were attached. A run that goes on from its last
            checkpoint has none of its own, and then nothing was measured.
        step_ms: Median time of a step.
    """
    measured = handle.seconds if steps > 0 else {}
    return {name: 1000 * seconds / steps / step_ms for name, seconds in measured.items()}


def _saved_by_folding(row: Row) -> int:
    """Numbers saved when ``u @ core`` becomes one factor, or the layer dense if that is less."""
    if row.rank is None or row.form == "two factors":
        return 0
    return max(row.trainable, row.stored - row.dense)
