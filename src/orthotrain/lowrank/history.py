"""What adaptive low-rank training remembers: of each layer, and of the loss around cuts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from orthotrain.errors import StateError
from orthotrain.lowrank.policy import has_settled, kept_before, loss_jumped, verdict_is_due


@dataclass
class LayerHistory:
    """One layer's past: plain numbers and one tensor, so it can be saved.

    Attributes:
        planned_rank: The rank a dense layer would have by now; -1 before its first update.
        cut_energy: Of each block, the sum of squares of the singular values cut so far.
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

    def energy_was_cut(self, lost: list[float]) -> None:
        """Add what one cut took from each block."""
        before = self.cut_energy or [0.0] * len(lost)
        self.cut_energy = [a + b for a, b in zip(before, lost, strict=True)]

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


def _copied(value: Any) -> Any:
    """A value that shares nothing with a state dict."""
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value


class LossGuard:
    """Compares losses before and after an update that cut something."""

    def __init__(self) -> None:
        self._before: list[float] = []
        self._after: list[float] = []
        self._suspects: list[str] = []

    @property
    def watching(self) -> bool:
        """Whether a cut waits for its verdict."""
        return bool(self._suspects)

    @property
    def has_seen_losses(self) -> bool:
        """Whether any training loss was shown to it."""
        return bool(self._before or self._after)

    def observe(self, loss: float) -> None:
        """Take one training loss."""
        if self._suspects:
            self._after.append(loss)
        else:
            self._before = kept_before([*self._before, loss])

    def cut_happened(self, layers: Iterable[str]) -> None:
        """Start judging a cut of these layers by the losses from now on."""
        self._suspects, self._after = list(layers), []

    def verdict(self, *, final: bool = False) -> list[str]:
        """Layers whose cut made the loss jump, once enough losses were seen or time is up.

        Ends the watch when it judges, so the losses since the cut become those before the next.
        """
        if not self._suspects or not (final or verdict_is_due(self._after)):
            return []
        guilty = self._suspects if loss_jumped(self._before, self._after) else []
        self._before = kept_before([*self._before, *self._after])
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
