"""The ways to train: dense, branches of the finished dense run, cut on the way, narrow.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

from orthotrain.lab.run.config import Variant, below_one, need, positive
from orthotrain.lab.run.record import SeedFolder, read_metrics

DENSE: Final = "dense"


@dataclass(frozen=True)
class BranchOptim:
    """Training on after the finished dense model was cut.

    Attributes:
        rate_factor: Factor on the peak learning rate that follows from the cut.
        warmup_fraction: Share of a branch's steps spent on its warm-up.
        teacher_share: Share of the loss that is the cross-entropy with a teacher's probabilities.
    """

    warmup_fraction: float = 0.05
    teacher_share: float = 0.5
    rate_factor: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "branch", "rate_factor")
        below_one(self, "branch", "warmup_fraction")
        need(
            0 < self.teacher_share <= 1,
            f"branch.teacher_share={self.teacher_share} must lie in (0, 1]",
        )


@dataclass(frozen=True)
class Cut:
    """How a network becomes low-rank, on its way or before a branch begins.

    Attributes:
        stored: Share of the model's numbers that is stored after the one cut; None for the
            published rule, which cuts again and again.
        delay_fraction: Share of the training before the cut; 0 where a branch starts with it.
        bases: Which factors are trained: both, or a core between frozen bases.
        repaired: The cut by what the loss feels, and the step of a frozen core scaled.
        ranks: Rank of each layer, as another training has it; None where the cut decides.
        rank_rtol: Of the published rule: singular values below this share of the largest are
            dropped.
    """

    stored: float | None
    delay_fraction: float = 0.5
    bases: Literal["trained", "frozen"] = "trained"
    repaired: bool = True
    ranks: Mapping[str, int] | None = None
    rank_rtol: float = 0.15


# Of the authors' CIFAR-10 mini ViT: nu = 50 and 10 of 300 epochs.
PUBLISHED: Final = Cut(None, delay_fraction=50 / 300, bases="frozen", repaired=False)


@dataclass(frozen=True)
class BranchedVariant(Variant):
    """A way to train where a finished dense network may be the start or the teacher.

    Attributes:
        cut: How it becomes low-rank; None where it does not.
        stored: Narrow the network to this share of the numbers; None for its full width.
        branch: Start from the finished dense model, with this share of the dense steps.
        teacher: Learn from the finished dense model, too.
        as_branch: For as much compute as a branch with this share of the steps, at ``stored``.
        dense: The finished dense training of the same seed, where one is needed.
    """

    cut: Cut | None = None
    stored: float | None = None
    branch: float | None = None
    teacher: bool = False
    as_branch: float | None = None
    dense: SeedFolder | None = None

    def settings(self) -> Mapping[str, object]:
        """What result.json says about it, beside network, steps and learning rate."""
        return {
            "start": "random" if self.branch is None else DENSE,
            "teacher": DENSE if self.teacher else None,
            "lowrank": None if self.cut is None else asdict(self.cut),
        }

    def with_trainings(self, finished: Sequence[Path]) -> Self:
        """Built on the dense training of its seed, or cut to the ranks of another training."""
        folder = SeedFolder(finished[0])
        if self.needs == DENSE or self.cut is None:
            return replace(self, dense=folder)
        return replace(self, cut=replace(self.cut, ranks=_final_ranks(folder)))


def _final_ranks(folder: SeedFolder) -> dict[str, int]:
    """The last recorded rank of each layer."""
    lines = [line for line in read_metrics(folder.metrics) if line["kind"] == "rank"]
    return {line["layer"]: line["rank"] for line in lines}


# --- the ways -----------------------------------------------------------------------------------


def dense() -> BranchedVariant:
    """The baseline."""
    return BranchedVariant(DENSE, "dense", "the same network without any method")


def narrow(size: int) -> BranchedVariant:
    """A narrow network of ``size`` percent from scratch, for the whole schedule."""
    return BranchedVariant(
        f"narrow-{size}",
        f"narrow, {size} %",
        f"a dense network from scratch, narrowed to {size} % of the numbers",
        stored=size / 100,
    )


def taught(variant: BranchedVariant) -> BranchedVariant:
    """The same with the finished dense model as teacher."""
    return replace(
        variant,
        name=f"{variant.name}-teacher",
        title=f"{variant.title}, with teacher",
        note=f"{variant.note}, with the finished dense model as teacher",
        needs=DENSE,
        same_seed=True,
        teacher=True,
    )


def short(variant: BranchedVariant, branch: BranchedVariant) -> BranchedVariant:
    """The same for as much compute as a branch."""
    return replace(
        variant,
        name=f"{variant.name}-short",
        title=f"{variant.title}, short",
        note=f"{variant.note}, for as much compute as {branch.name}",
        as_branch=branch.branch,
    )


def half(size: int) -> BranchedVariant:
    """Cut to ``size`` percent at half of the run."""
    return BranchedVariant(
        f"half-{size}",
        f"cut at half, {size} %",
        f"cut to {size} % of the numbers at half of the run, then trained on as planned",
        cut=Cut(size / 100),
    )


def branch(size: int, percent: int) -> BranchedVariant:
    """The finished dense model cut to ``size`` percent, with ``percent`` of the dense steps."""
    return BranchedVariant(
        f"branch-{size}-{percent}",
        f"branch, {size} %, + {percent} % of the steps",
        f"the finished dense model, cut to {size} % of the numbers, trained on with the dense "
        "model as teacher",
        needs=DENSE,
        same_seed=True,
        cut=Cut(size / 100, delay_fraction=0),
        branch=percent / 100,
        teacher=True,
    )


def frozen(size: int) -> BranchedVariant:
    """A core between frozen bases, with both repairs."""
    return BranchedVariant(
        f"frozen-{size}",
        f"frozen bases, {size} %",
        "a core between frozen bases from half of the run on, cut by what the loss feels, its "
        "step scaled",
        cut=Cut(size / 100, bases="frozen"),
    )


def frozen_plain(size: int) -> BranchedVariant:
    """The same without the repairs, at ranks that its own cut decides."""
    repaired = frozen(size)
    return replace(
        repaired,
        name=f"{repaired.name}-plain",
        title=f"{repaired.title}, plain",
        note="a core between frozen bases from half of the run on, cut by its weights, its step "
        "as the optimizer has it",
        cut=Cut(size / 100, bases="frozen", repaired=False),
    )


def with_ranks_of(variant: BranchedVariant, other: BranchedVariant) -> BranchedVariant:
    """The same cut to the ranks that another variant's training of the same seed ended with."""
    return replace(
        variant,
        note=f"{variant.note}, to the ranks of {other.name}",
        needs=other.name,
        same_seed=True,
    )
