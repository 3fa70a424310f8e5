"""One process decides the ranks, all processes hold the same factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from orthotrain.lowrank.sites import Site
from orthotrain.methods import Run


class Agreement:
    """What one process decided, the same on all of them; on a single process, nothing to do."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def decides(self) -> bool:
        """Whether this process computes the decisions that all follow."""
        return True

    def ranks(self, ranks: Sequence[int]) -> list[int]:
        """The deciding process's list of integers."""
        return list(ranks)

    def factors(
        self, compute: Callable[[], tuple[Tensor, Tensor, Tensor]], site: Site
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The deciding process's decomposition of a site; only that process computes it."""
        return compute()

    def structure_changed(self) -> None:
        """Tell a wrapper that synchronizes gradients about the new shapes."""
