"""The guard on the loss: it notices a cut that made the training loss jump."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

# With ten losses before and after, noise alone exceeds this many standard errors once in a
# thousand cuts (Student's t, 9 degrees of freedom), with five once in a hundred and fifty;
# fewer give no standard error worth the name.
_JUMP_LOSSES = 10
_JUMP_ERRORS = 4.3
_JUMP_MIN_LOSSES = 5


class LossGuard:
    """Compares losses before and after an update that cut something.

    Attributes:
        cutting: Whether some layers of an update are cut and others are not yet. Losses from then
            are of neither side.
    """

    def __init__(self) -> None:
        self.cutting = False
        self._before: list[float] = []
        self._after: list[float] = []
        self._suspects: list[str] = []

    @property
    def has_seen_losses(self) -> bool:
        """Whether any training loss was shown to it."""
        return bool(self._before or self._after)

    def observe(self, loss: float) -> None:
        """Take one training loss."""
        if self.cutting:
            return
        if self._suspects:
            self._after.append(loss)
        else:
            self._before = [*self._before, loss][-_JUMP_LOSSES:]

    def cut_happened(self, layers: Iterable[str]) -> None:
        """Start judging a cut of these layers by the losses from now on."""
        self._suspects, self._after = list(layers), []

    def verdict(self, *, final: bool = False) -> list[str]:
        """Layers whose cut made the loss jump, once enough losses were seen or time is up.

        Ends the watch when it judges, so the losses since the cut become those before the next.
        """
        if not self._suspects or not (final or len(self._after) >= _JUMP_LOSSES):
            return []
        guilty = self._suspects if loss_jumped(self._before, self._after) else []
        self._before = [*self._before, *self._after][-_JUMP_LOSSES:]
        self._suspects, self._after = [], []
        return guilty

    def state_dict(self) -> dict[str, Any]:
        """Plain lists."""
        return {
            "before": list(self._before),
            "after": list(self._after),
            "suspects": list(self._suspects),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self._before = list(state["before"])
        self._after = list(state["after"])
        self._suspects = list(state["suspects"])


def loss_jumped(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the losses after a cut lie above those before it by more than their noise.

    Over 4.3 standard errors of the difference of the two means, from the spread before the cut;
    a loss that is not finite is a jump. With fewer than five losses on a side there is no
    verdict.
    """
    if any(not math.isfinite(loss) for loss in after):
        return True
    before, after = before[-_JUMP_LOSSES:], after[:_JUMP_LOSSES]
    if min(len(before), len(after)) < _JUMP_MIN_LOSSES:
        return False
    spread = torch.tensor(before, dtype=torch.float64).std().item()
    error = spread * math.sqrt(1 / len(before) + 1 / len(after))
    return sum(after) / len(after) - sum(before) / len(before) > _JUMP_ERRORS * error
