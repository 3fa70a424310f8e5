"""The ways to train: dense, branches of the finished dense run, cut on the way, narrow.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

from orthotrain.lab.experiments.language.config import LanguageRun
from orthotrain.lab.run.config import Variant
from orthotrain.lab.run.record import SeedFolder

DENSE: Final = "dense"
#: Percent of the dense network's numbers that are stored.
SIZES: Final = (75, 50, 30)
# The branch of each size whose compute a shortened narrow network gets.
_BRANCH_OF: Final = {75: 5, 50: 20, 30: 38}


@dataclass(frozen=True)
class Cut:
    """How a network becomes low-rank on its way.

    Attributes:
        stored: Share of the model's numbers that is stored after the one cut; None for the
            published rule, which cuts again and again.
        delay_fraction: Share of the training before the cut; 0 for the first steps there can be.
        bases: Which factors are trained: both, or a core between frozen bases.
        repaired: The cut by what the loss feels, and the step of a frozen core scaled.
    """

    stored: float | None
    delay_fraction: float = 0.5
    bases: Literal["trained", "frozen"] = "trained"
    repaired: bool = True


# Of the authors' CIFAR-10 mini ViT: nu = 50 and 10 of 300 epochs.
PUBLISHED: Final = Cut(None, delay_fraction=50 / 300, bases="frozen", repaired=False)


@dataclass(frozen=True)
class LanguageVariant(Variant):
    """A way to train a language model.

    Attributes:
        lr: Peak learning rate; of a branch, that of the dense training, from which its own
            follows.
        cut: How it becomes low-rank; None where it does not.
        stored: Narrow the network to this share of the numbers; None for its full width.
        branch: Start from the finished dense model, with this share of the dense steps.
        teacher: Learn from the finished dense model, too.
        as_branch: For as much compute as a branch with this share of the steps, at ``stored``.
        dense: The finished dense training of the same seed, where one is needed.
    """

    lr: float = 0.0
    cut: Cut | None = None
    stored: float | None = None
    branch: float | None = None
    teacher: bool = False
    as_branch: float | None = None
    dense: SeedFolder | None = None

    def settings(self) -> Mapping[str, object]:
        """What result.json says about it, beside network and steps."""
        return {
            "learning_rate": self.lr,
            "start": "random" if self.branch is None else DENSE,
            "teacher": DENSE if self.teacher else None,
            "lowrank": None if self.cut is None else asdict(self.cut),
        }

    def with_trainings(self, finished: Sequence[Path]) -> Self:
        """Built on the dense training of its seed."""
        (dense,) = finished
        return replace(self, dense=SeedFolder(dense))


def language_variants(config: LanguageRun) -> tuple[LanguageVariant, ...]:
    """All ways to train, the dense one first."""
    return (
        dense(config),
        *_branches(config),
        *(half(config, size) for size in SIZES),
        *(one for size in SIZES for one in _narrow(config, size)),
        LanguageVariant(
            "oialr-paper",
            "OIALR, published settings",
            "settings of the authors' CIFAR-10 mini ViT, times scaled to the length of this run",
            lr=config.rates.dense,
            cut=PUBLISHED,
        ),
        *_frozen(config),
    )


def dense(config: LanguageRun) -> LanguageVariant:
    """The baseline."""
    note = "the same network without any method"
    return LanguageVariant(DENSE, "dense", note, lr=config.rates.dense)


def narrow(config: LanguageRun, size: int) -> LanguageVariant:
    """A narrow network from scratch, for the whole schedule."""
    return LanguageVariant(
        f"narrow-{size}",
        f"narrow, {size} %",
        f"a dense network from scratch, narrowed to {size} % of the numbers",
        lr=getattr(config.rates, f"narrow_{size}"),
        stored=size / 100,
    )


def half(config: LanguageRun, size: int) -> LanguageVariant:
    """Cut at half of the run."""
    return LanguageVariant(
        f"half-{size}",
        f"cut at half, {size} %",
        f"cut to {size} % of the numbers at half of the run, then trained on as planned",
        lr=config.rates.dense,
        cut=Cut(size / 100),
    )


def _branches(config: LanguageRun) -> tuple[LanguageVariant, ...]:
    table = ((75, 5), (50, 5), (50, 20), (30, 38))
    with_teacher = [
        LanguageVariant(
            f"branch-{size}-{percent}",
            f"branch, {size} %, + {percent} % of the steps",
            f"the finished dense model, cut to {size} % of the numbers, trained on with the dense "
            "model as teacher",
            needs=DENSE,
            same_seed=True,
            lr=config.rates.dense,
            cut=Cut(size / 100, delay_fraction=0),
            branch=percent / 100,
            teacher=True,
        )
        for size, percent in table
    ]
    alone = replace(
        next(one for one in with_teacher if one.name == "branch-50-20"),
        name="branch-50-20-alone",
        title="branch, 50 %, + 20 % of the steps, no teacher",
        note="the finished dense model, cut to 50 % of the numbers, trained on without a teacher",
        teacher=False,
    )
    return (*with_teacher, alone)


def _narrow(config: LanguageRun, size: int) -> tuple[LanguageVariant, ...]:
    full = narrow(config, size)
    taught = replace(
        full,
        name=f"{full.name}-teacher",
        title=f"{full.title}, with teacher",
        note=f"{full.note}, with the finished dense model as teacher",
        needs=DENSE,
        same_seed=True,
        teacher=True,
    )
    percent = _BRANCH_OF[size]
    short = [
        replace(
            one,
            name=f"{one.name}-short",
            title=f"{one.title}, short",
            note=f"{one.note}, for as much compute as branch-{size}-{percent}",
            as_branch=percent / 100,
        )
        for one in (full, taught)
    ]
    return (full, short[0], taught, short[1])


def _frozen(config: LanguageRun) -> tuple[LanguageVariant, ...]:
    repaired = LanguageVariant(
        "frozen-50",
        "frozen bases, 50 %",
        "a core between frozen bases from half of the run on, cut by what the loss feels, its "
        "step scaled",
        lr=config.rates.dense,
        cut=Cut(0.5, bases="frozen"),
    )
    plain = replace(
        repaired,
        name="frozen-50-plain",
        title="frozen bases, 50 %, plain",
        note="a core between frozen bases from half of the run on, cut by its weights, its step "
        "as the optimizer has it",
        cut=Cut(0.5, bases="frozen", repaired=False),
    )
    return repaired, plain
