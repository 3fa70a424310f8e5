"""The learning rate of the training that follows a cut."""

from __future__ import annotations

import math
from typing import Final

from orthotrain._checks import require_number, require_steps
from orthotrain._doors import checked
from orthotrain.errors import ConfigError

#: The training after a cut takes the dense run's peak rate from this share of its steps on.
FULL_RATE_LENGTH: Final = 0.8

#: A cut that raised the loss by less than this share of it takes a lower rate.
FELT_LOSS: Final = 0.002


@checked
def rate_after_cut(
    peak: float,
    *,
    steps: int,
    dense_steps: int,
    loss_before: float | None = None,
    loss_after: float | None = None,
) -> float:
    """Peak learning rate of the training that follows a cut: warm up to it, then decay to zero.

    ``peak * min(1, length / 0.8) * min(1, sqrt(lost / 0.002))`` with ``length = steps /
    dense_steps`` and ``lost = (loss_after - loss_before) / loss_before``. Short training takes a
    lower rate, because it has less time to come down from one. A cut that lost nothing has
    nothing to repair, and any restart at the old rate would end above it: the rate is zero. For a
    start whose own training is finished; half-way through a run its schedule goes on.

    Args:
        peak: Peak rate of the dense run, the best for it.
        steps: Optimizer steps after the cut.
        dense_steps: Optimizer steps of the dense run.
        loss_before: Training loss of the dense model on some batches.
        loss_after: Loss on the same batches right after the cut. Without the two losses the
            length alone decides.

    Returns:
        A rate from zero to ``peak``.

    Raises:
        ConfigError: A peak that is not positive and finite, a count below one, one loss without
            the other, or a loss that is not finite.

    Note:
        The rule rests on a byte-level GPT trained with AdamW for 6,000 steps at its best peak of
        6e-3 (``benchmarks/rate_after_cut.py``, one seed; the grid has factors of two). Best parts
        of the peak: .0625 at 75 % stored with 5 % of the steps, .125 at 50 % with 5 %, .25 at 50 %
        with 20 %, .5 at 30 % with 38 %. The rule's were at most .001 bits above these.

    Example:
        >>> rate_after_cut(6e-3, steps=1200, dense_steps=6000)
        0.0015
    """
    require_steps("rate_after_cut", "steps", steps)
    require_steps("rate_after_cut", "dense_steps", dense_steps)
    require_number("rate_after_cut", "peak", peak, above=0)
    by_length = min(1.0, steps / dense_steps / FULL_RATE_LENGTH)
    if loss_before is None and loss_after is None:
        return peak * by_length
    if loss_before is None or loss_after is None:
        raise ConfigError(
            f"rate_after_cut needs both losses, or none, got loss_before={loss_before!r} and "
            f"loss_after={loss_after!r}; measure both on the same batches"
        )
    require_number("rate_after_cut", "loss_before", loss_before)
    require_number("rate_after_cut", "loss_after", loss_after)
    lost, felt = max(0.0, loss_after - loss_before), FELT_LOSS * abs(loss_before)
    by_loss = math.sqrt(min(1.0, lost / felt)) if felt else float(lost > 0)
    return peak * by_length * by_loss
