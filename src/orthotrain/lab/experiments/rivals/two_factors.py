"""Two trained factors of hand-set rank: from the first step, or after a dense warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.branches.plan import Plan
from orthotrain.lab.experiments.rivals.config import RivalSettings
from orthotrain.lab.experiments.rivals.table import HALF
from orthotrain.lowrank import AdaptiveLowRank
from orthotrain.lowrank.rank_rule import Candidate, RankRule


@dataclass(frozen=True)
class UniformShare(RankRule):
    """Every layer keeps the same share of its numbers, so that the model stores ``share`` of all.

    Attributes:
        share: Of the dense model's numbers, in ``(0, 1]``.
    """

    one_cut: ClassVar[bool] = True

    share: float

    def ranks(
        self, layers: Sequence[Candidate], *, min_ranks: Sequence[int], other_numbers: int
    ) -> list[int]:
        """The largest ranks within the share."""
        self.require_reachable(layers, min_ranks=min_ranks, other_numbers=other_numbers)
        left, dense = self._left(layers, other_numbers)
        return [
            max(least, int(left / dense * layer.m * layer.n / (layer.m + layer.n)))
            for layer, least in zip(layers, min_ranks, strict=True)
        ]

    def require_reachable(
        self, layers: Sequence[Candidate], *, min_ranks: Sequence[int], other_numbers: int
    ) -> None:
        """Refuse a share that what is not low-rank exceeds alone."""
        left, dense = self._left(layers, other_numbers)
        if left <= 0:
            raise ConfigError(
                f"UniformShare({self.share}): the rest of the model holds {other_numbers:,} of "
                f"{dense + other_numbers:,} numbers, so nothing is left for low-rank layers; "
                "raise the share, or take a wider network"
            )

    def _left(self, layers: Sequence[Candidate], other_numbers: int) -> tuple[float, int]:
        """Numbers that are left for these layers, and those of their dense form."""
        dense = sum(layer.blocks * layer.m * layer.n for layer in layers)
        return self.share * (dense + other_numbers) - other_numbers, dense


def fixed_rank(model: nn.Module, settings: RivalSettings, *, total_steps: int, seed: int) -> Plan:
    """Two factors from the first step on.

    They are the truncated decomposition of the dense initial weight: Khodak et al. (2021),
    arXiv:2105.01029.
    """
    return Plan((_factors(0),))


def pufferfish_like(
    model: nn.Module, settings: RivalSettings, *, total_steps: int, seed: int
) -> Plan:
    """Pufferfish-like: a dense warm-up, then two factors of the weights' decomposition.

    As Pufferfish (Wang, Agarwal and Papailiopoulos 2021, arXiv:2103.03936), but that every layer
    gets the same share of numbers, and that only the head and tied weights stay dense. So the
    model has the size of the other rivals.
    """
    return Plan((_factors(max(1, round(settings.dense_fraction * total_steps))),))


def _factors(delay_steps: int) -> AdaptiveLowRank:
    return AdaptiveLowRank(
        delay_steps=delay_steps, rank=UniformShare(HALF / 100), importance="weight", spread=False
    )
