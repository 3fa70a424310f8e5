"""What the loop needs of anything that trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from orthotrain.lab.run.record import SeedFolder
from orthotrain.methods.handle import Handle

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Cadence:
    """What is written how often, in optimizer steps. All of it happens after the last step, too.

    Attributes:
        log: Steps between lines with losses and time.
        evaluate: Steps between evaluations.
        checkpoint: Steps between checkpoints.
        epoch: Steps per epoch; every line says its epoch where this is known.
        sizes: Whether sizes and ranks of the model are written, at the start, at the end and
            when they change.
    """

    log: int
    evaluate: int
    checkpoint: int
    epoch: int | None = None
    sizes: bool = True


@dataclass(frozen=True)
class Step:
    """What one step tells.

    Attributes:
        values: Losses and learning rate by name; tensors of one number may stay on their device.
        lines: Further lines, each with its ``kind``; made after the time of the step is taken.
    """

    values: Mapping[str, Tensor | float]
    lines: Iterable[Line] = ()


@dataclass(frozen=True)
class Ending:
    """What a trainer may need for its result.

    Attributes:
        folder: Where files go.
        lines: All lines of metrics.jsonl.
        steps_here: Optimizer steps since the methods were attached: fewer after a resume.
        read_test: Whether the test part may be read; not while settings are chosen.
    """

    folder: SeedFolder
    lines: Sequence[Line]
    steps_here: int
    read_test: bool


class Trainer(Protocol):
    """One training, from its first step to its result.

    Attributes:
        steps: Optimizer steps done.
        total_steps: Optimizer steps of the whole training.
        handle: The attached methods.
        cadence: What is written how often.
        device: Where it trains.
        network: What rebuilds the trained network, see :mod:`orthotrain.lab.run.restore`.
    """

    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def total_steps(self) -> int: ...  # noqa: D102
    @property
    def handle(self) -> Handle: ...  # noqa: D102
    @property
    def cadence(self) -> Cadence: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def network(self) -> Mapping[str, Any]: ...  # noqa: D102

    def step(self) -> Step:
        """Take one optimizer step."""

    def evaluate(self, folder: SeedFolder) -> Line:
        """Look at the model: what a line "eval" says, empty for no line. Files go to ``folder``."""

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on; tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next step is the same bit for bit."""

    def result(self, ending: Ending) -> dict[str, Any]:
        """What result.json says beside variant, seed, steps, seconds and memory."""
