"""From a cut to the method that makes it, and the steps at which it does."""

from __future__ import annotations

from orthotrain.lab.experiments.language.variants import Cut
from orthotrain.lowrank import AdaptiveLowRank, StoredBudget

# Steps that are looked at before a cut.
COLLECTING_STEPS = 8
# As published for the authors' CIFAR-10 mini ViT: every 10 of 300 epochs, beta .15, alpha .1.
_PUBLISHED_EVERY = 10 / 300


def low_rank_method(cut: Cut, *, total_steps: int) -> AdaptiveLowRank:
    """The method that cuts, times in optimizer steps."""
    first, every = first_cut(cut, total_steps=total_steps), cut_every(cut, total_steps=total_steps)
    if cut.stored is None:
        return AdaptiveLowRank(
            delay_steps=first, every_steps=every, rank_rtol=0.15, layer_fraction=0.1,
            only_if_cheaper=False,
        )  # fmt: skip
    return AdaptiveLowRank(
        delay_steps=first, every_steps=every, rank=StoredBudget(cut.stored), bases=cut.bases,
        layer_fraction=1.0, max_drop=1.0,
    )  # fmt: skip


def first_cut(cut: Cut, *, total_steps: int) -> int:
    """Optimizer steps before the first cut."""
    return round(cut.delay_fraction * total_steps) or min(COLLECTING_STEPS, total_steps - 1)


def cut_every(cut: Cut, *, total_steps: int) -> int:
    """Optimizer steps between cuts; more than the run has where there is one."""
    return total_steps if cut.stored else max(1, round(_PUBLISHED_EVERY * total_steps))


def cuts_at(cut: Cut | None, step: int, *, total_steps: int) -> bool:
    """Whether a cut is due after this optimizer step."""
    if cut is None:
        return False
    since = step - first_cut(cut, total_steps=total_steps)
    return since >= 0 and since % cut_every(cut, total_steps=total_steps) == 0
