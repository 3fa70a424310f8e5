"""When updates are due, in optimizer steps: counts and shares of a run become one schedule."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Final, Literal

from orthotrain.errors import OrthotrainWarning
from orthotrain.lowrank.history import POINTS_TO_SETTLE

#: Steps before an update whose passes are watched where data decide what is cut.
WATCHED_STEPS: Final = 8

# Published: of a run of 300 epochs, ten between updates. The paper's default is 100 steps.
_UPDATES_PER_RUN: Final = 30
_STEPS_BETWEEN: Final = 100

Count = int | float | Literal["auto"]


@dataclass(frozen=True)
class Schedule:
    """When updates are due, and when the passes before them are watched.

    Attributes:
        first: Steps before the first update; 0 is when attached.
        every: Steps from one update to the next; None where the first is the only one.
        settling: Whether each layer switches by itself once its basis has settled.
        window: Steps before an update whose passes are watched.
    """

    first: int
    every: int | None
    settling: bool
    window: int

    def due(self, step: int) -> bool:
        """Whether an update follows the ``step``-th step."""
        since = step - self.first
        return since == 0 or (self.every is not None and since > 0 and since % self.every == 0)

    def watched(self, step: int) -> bool:
        """Whether the passes after the ``step``-th step are watched for the next update."""
        left = self.first - step
        if left <= 0:
            if self.every is None:
                return False
            left = self.every - (-left) % self.every
        return left <= self.window

    def layers_per_step(self, layers: int, *, total_steps: int | None) -> int:
        """How many layers a step sees or changes, where an update is spread: one if there is room.

        Each layer is seen once and changed once; where layers settle, its basis is compared once.
        An update ends before the next one is watched for, and the first one before the run ends.
        """
        parts = self.parts * layers
        room = parts
        if self.every is not None:
            room = min(room, self.every - self.window)
        if total_steps is not None:
            room = min(room, total_steps - self.first_switch)
        return math.ceil(parts / max(room, 1))

    @property
    def parts(self) -> int:
        """How often a layer is worked on in one update."""
        return 3 if self.settling else 2

    @property
    def first_switch(self) -> int:
        """Steps before the earliest switch there can be."""
        if not self.settling:
            return self.first
        assert self.every is not None
        return (POINTS_TO_SETTLE + 1) * self.every  # the first check has no point yet


def schedule_of(
    delay: Count, every: Count, *, total_steps: int | None, window: int, one_cut: bool
) -> Schedule:
    """The schedule of a run.

    Args:
        delay: Dense steps: a count, a share of the run, or ``"auto"``.
        every: Steps between updates, in the same forms.
        total_steps: Steps of the run, where they are known.
        window: Steps to watch before each update. With no delay the first update comes after
            them; a shorter delay leaves fewer.
        one_cut: Whether ``every="auto"`` means a single update, at the switch.

    Warns:
        OrthotrainWarning: A share of a run whose length is not known: each layer switches once
            its basis has settled.
    """
    settling = delay == "auto"
    if total_steps is None and any(isinstance(each, float) for each in (delay, every)):
        settling = settling or isinstance(delay, float)
        every = "auto" if isinstance(every, float) else every
        warnings.warn(
            f"AdaptiveLowRank: delay_steps={delay!r} and every_steps={every!r} are shares of a "
            "run whose length is not known, so "
            + (
                "each layer switches once its basis has settled"
                if settling
                else f"updates follow every {_STEPS_BETWEEN} steps"
            )
            + "; pass total_steps to attach, or counts of steps",
            OrthotrainWarning,
            stacklevel=2,
        )
    if isinstance(every, float):
        assert total_steps is not None
        between: int | None = max(1, round(every * total_steps))
    elif every != "auto":
        between = int(every)
    elif one_cut and not settling:
        between = None
    else:
        between = _STEPS_BETWEEN if total_steps is None else max(1, total_steps // _UPDATES_PER_RUN)
    if settling:
        assert between is not None
        return Schedule(between, between, True, window)
    if isinstance(delay, float):
        assert total_steps is not None
        count = max(1, round(delay * total_steps))
    else:
        count = int(delay)
    return Schedule(count or window, between, False, window)
