"""From a cut to the method that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from orthotrain.lab.experiments.branches.variants import Cut
from orthotrain.lowrank import AdaptiveLowRank, StoredBudget
from orthotrain.lowrank.rank_rule import Candidate, LayerRule

# As published for the authors' CIFAR-10 mini ViT: every 10 of 300 epochs, alpha .1.
_PUBLISHED_EVERY = 10 / 300


@dataclass(frozen=True)
class GivenRanks(LayerRule):
    """The rank of each layer as another training has it.

    Attributes:
        of_layers: Rank by name of the layer; any other layer keeps its rank.
    """

    one_cut: ClassVar[bool] = True

    of_layers: Mapping[str, int]

    def rank(self, layer: Candidate) -> int:
        """What the table says."""
        return self.of_layers.get(layer.name, layer.full_rank)


def low_rank_method(cut: Cut, *, total_steps: int) -> AdaptiveLowRank:
    """The method that cuts, once; as published, again and again."""
    if cut.stored is None:
        return AdaptiveLowRank.published(
            delay_steps=round(cut.delay_fraction * total_steps),
            every_steps=max(1, round(_PUBLISHED_EVERY * total_steps)),
            rank_rtol=cut.rank_rtol,
            layer_fraction=0.1,
        )
    return AdaptiveLowRank(
        delay_steps=cut.delay_fraction,
        rank=StoredBudget(cut.stored) if cut.ranks is None else GivenRanks(cut.ranks),
        bases=cut.bases,
        importance="loss" if cut.repaired else "weight",
        core_step="auto" if cut.repaired else 1.0,
        spread=False,  # the cut is one point of the run: compute is counted before and after it
    )
