"""What adaptive low-rank training remembers of each layer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from orthotrain.errors import StateError

# The published mean curve of a ViT-B/16 (five epochs between points) rises by less than this
# over two intervals from epoch 60 of 100 on; a noisy layer needs three points to show a trend.
_SETTLED_RISE = 0.02
POINTS_TO_SETTLE = 3

_TINY = sys.float_info.min


@dataclass
class LayerHistory:
    """One layer's past: plain numbers and one tensor, so it can be saved.

    Attributes:
        planned_rank: The rank a dense layer would have by now; -1 before its first update.
        cut_energy: Of each block, the sum of squares of the singular values cut so far. Where
            they are seen in a metric, whose unit changes from update to update, that sum over
            the energy that was kept.
        switched_at: Step at which it became low-rank; -1 while dense.
        wait_updates: Updates it sits out, after a cut that hurt.
        strikes: Cuts that hurt, so far.
        stability: Basis stability from one check to the next, for ``delay_steps="auto"``.
        basis: The basis at the last check, where the next one is compared with it.
    """

    planned_rank: int = -1
    cut_energy: list[float] = field(default_factory=list)
    switched_at: int = -1
    wait_updates: int = 0
    strikes: int = 0
    stability: list[float] = field(default_factory=list)
    basis: Tensor | None = None

    def energy_was_cut(self, kept: list[float], lost: list[float], *, in_metric: bool) -> float:
        """Add what one cut took from each block.

        Returns:
            What is kept, as a share of what was there and what was ever cut.
        """
        before = self.cut_energy or [0.0] * len(lost)
        blocks = list(zip(before, kept, lost, strict=True))
        if in_metric:
            cut = [share * (k + gone) + gone for share, k, gone in blocks]
            self.cut_energy = [c / max(k, _TINY) for c, k in zip(cut, kept, strict=True)]
        else:
            cut = self.cut_energy = [share + gone for share, _, gone in blocks]
        return sum(kept) / max(sum(kept) + sum(cut), _TINY)

    def waits(self) -> bool:
        """Whether it sits this update out; counts the update."""
        waits = self.wait_updates > 0
        self.wait_updates -= waits
        return waits

    @property
    def settled(self) -> bool:
        """Whether its basis has stopped turning."""
        return has_settled(self.stability)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and the basis, which is copied."""
        return {f.name: _copied(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> LayerHistory:
        """The history that ``state_dict`` gave.

        Raises:
            StateError: An entry is missing.
        """
        missing = sorted({f.name for f in fields(cls)} - set(state))
        if missing:
            raise StateError(
                f"AdaptiveLowRank needs {missing} in the state of each layer, got "
                f"{sorted(map(str, state))}; load a state that handle.state_dict() gave"
            )
        return cls(**{f.name: _copied(state[f.name]) for f in fields(cls)})


def has_settled(stability: Sequence[float]) -> bool:
    """Whether a layer's basis stability, point by point, has stopped rising.

    Over the last three points it must not fall, and must rise by less than 0.02. A basis that
    still turns away from where it was falls; one that settles rises first and flattens then.
    """
    if len(stability) < POINTS_TO_SETTLE:
        return False
    rise = stability[-1] - stability[-POINTS_TO_SETTLE]
    return 0.0 <= rise < _SETTLED_RISE


def _copied(value: Any) -> Any:
    """A value that shares nothing with a state dict."""
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value
