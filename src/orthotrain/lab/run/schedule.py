"""Learning rate over a run, as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orthotrain.errors import ConfigError


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, final: float) -> float:
    """Learning rate of optimizer step ``step`` (from 0) over the peak learning rate.

    Rises linearly, without ever being zero, to one at step ``warmup_steps``, then falls along
    half a cosine to ``final`` at step ``total_steps - 1``.

    Args:
        step: Index of the step.
        total_steps: Steps of the run; later steps keep ``final``.
        warmup_steps: Steps before the peak, fewer than ``total_steps``.
        final: Value of the last step.

    Raises:
        ConfigError: ``warmup_steps`` is not in ``[0, total_steps)``.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ConfigError(
            f"warmup_cosine: warmup_steps={warmup_steps} must lie in [0, {total_steps}); use a "
            "shorter warm-up or a longer run"
        )
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    decay_steps = total_steps - 1 - warmup_steps
    progress = min(1.0, (step - warmup_steps) / decay_steps) if decay_steps else 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def step_decay(step: int, *, total_steps: int, decay_at: Sequence[float], factor: float) -> float:
    """Learning rate of optimizer step ``step`` (from 0) over the first one.

    Args:
        step: Index of the step.
        total_steps: Steps of the run.
        decay_at: Shares of the run after which the learning rate is multiplied by ``factor``.
        factor: What it is multiplied by.
    """
    # Rounded, so that a share that is an epoch count over the number of epochs means that epoch.
    return factor ** sum(step >= round(share * total_steps) for share in decay_at)
