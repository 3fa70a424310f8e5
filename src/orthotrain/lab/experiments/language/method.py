"""From a cut to the method that makes it."""

from __future__ import annotations

from orthotrain.lab.experiments.language.variants import Cut
from orthotrain.lowrank import AdaptiveLowRank, StoredBudget

# As published for the authors' CIFAR-10 mini ViT: every 10 of 300 epochs, beta .15, alpha .1.
_PUBLISHED_EVERY = 10 / 300


def low_rank_method(cut: Cut, *, total_steps: int) -> AdaptiveLowRank:
    """The method that cuts, once; as published, again and again."""
    if cut.stored is None:
        return AdaptiveLowRank.published(
            delay_steps=round(cut.delay_fraction * total_steps),
            every_steps=max(1, round(_PUBLISHED_EVERY * total_steps)),
            rank_rtol=0.15,
            layer_fraction=0.1,
        )
    return AdaptiveLowRank(
        delay_steps=cut.delay_fraction or 0,
        rank=StoredBudget(cut.stored),
        bases=cut.bases,
        importance="loss" if cut.repaired else "weight",
        core_step="auto" if cut.repaired else 1.0,
    )
