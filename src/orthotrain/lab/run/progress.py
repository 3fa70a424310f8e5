"""What a training tells while it runs; how that is shown is the caller's affair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Stage = Literal["started", "stepped", "evaluated", "finished", "skipped"]


@dataclass(frozen=True)
class Progress:
    """State of one training.

    Attributes:
        variant: Name of the variant.
        seed: Its seed.
        stage: What just happened.
        step: Optimizer steps done.
        total_steps: Optimizer steps of the whole training.
        loss: Last training loss that was read.
        accuracy: Last validation accuracy, a fraction.
        rank: Mean over low-rank layers and dense ones that could be of rank / full rank.
        step_ms: Median time of the last steps.
        plan: At the start, what the attached methods will do at which step.
        looked: What an evaluation measured.
    """

    variant: str
    seed: int
    stage: Stage
    step: int
    total_steps: int
    loss: float | None = None
    accuracy: float | None = None
    rank: float | None = None
    step_ms: float | None = None
    plan: str = ""
    looked: Mapping[str, Any] = field(default_factory=dict)


class OnProgress(Protocol):
    """Anything that takes progress, from a bar in a terminal to a list in a test."""

    def __call__(self, progress: Progress) -> None:
        """Take one message; must return quickly."""


def ignore(progress: Progress) -> None:
    """Show nothing."""
