"""How many steps a branch takes, and a narrow network for as much compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import nn

from orthotrain.lab.run.compute import ATTENTION_BACKWARD, ATTENTION_FORWARD
from orthotrain.lowrank.collect import MOST_SAMPLES

#: Batches that a branch is cut by: each passes forward and backward once, then forward alone
#: before and after the cut.
CUT_BATCHES: Final = 8


def branch_steps(share: float, dense_steps: int) -> int:
    """Optimizer steps of a branch: a share of the dense ones, and at least one."""
    return max(1, round(share * dense_steps))


@dataclass(frozen=True)
class Passes:
    """What the passes of a transformer over one batch compute.

    Attributes:
        places: Tokens in the batch.
        multiplied: Numbers that are multiplied with each of them.
        mixed: Length of a sequence times width times depth: what attention mixes per place.
        squared: Over the matrices that can be cut, the squares of both sides.
    """

    places: int
    multiplied: float
    mixed: int
    squared: int

    @property
    def forward(self) -> int:
        """Operations of one forward pass."""
        return self._operations(1, ATTENTION_FORWARD)

    @property
    def step(self) -> int:
        """Operations of one forward and backward pass."""
        return self._operations(3, ATTENTION_FORWARD + ATTENTION_BACKWARD)

    @property
    def measured(self) -> int:
        """Operations of one forward and backward pass whose second moments are summed."""
        return self.step + 2 * min(self.places, MOST_SAMPLES) * self.squared

    def _operations(self, products: int, squares: int) -> int:
        return round(self.places * (2 * products * self.multiplied + 2 * squares * self.mixed))


def squares_of(model: nn.Module) -> int:
    """What ``Passes.squared`` is of a model of linear layers; it may be on the meta device."""
    kept = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in kept]
    return sum(m.in_features**2 + m.out_features**2 for m in linear)


def short_steps(*, branch: int, cut: Passes, dense: Passes, narrow: Passes, teacher: bool) -> int:
    """Steps of a narrow network for as much compute as a branch with a teacher.

    Args:
        branch: Steps of the branch.
        cut: The dense network after the cut.
        dense: The dense network, the teacher.
        narrow: The narrow network.
        teacher: Whether the narrow network has the teacher, too.
    """
    spent = branch * (cut.step + dense.forward)
    spent += CUT_BATCHES * (dense.measured + dense.forward + cut.forward)
    each = narrow.step + (dense.forward if teacher else 0)
    return max(1, round(spent / each))
