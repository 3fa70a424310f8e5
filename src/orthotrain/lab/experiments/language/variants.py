"""The ways to train a language model: three sizes of each.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.branches.variants import (
    PUBLISHED,
    BranchedVariant,
    branch,
    dense,
    frozen,
    frozen_plain,
    half,
    narrow,
    short,
    taught,
    with_ranks_of,
)
from orthotrain.lab.experiments.language.config import LanguageRun

#: Percent of the dense network's numbers that are stored.
SIZES: Final = (75, 50, 30)
# Each branch: its size and its steps in percent. The last one of a size has the compute that a
# shortened narrow network gets.
_BRANCHES: Final = ((75, 5), (50, 5), (50, 20), (30, 37))


def language_variants(config: LanguageRun) -> tuple[BranchedVariant, ...]:
    """All ways to train, the dense one first."""
    repaired = frozen(50)
    return (
        dense(),
        *_branches(),
        *(half(size) for size in SIZES),
        *(one for size in SIZES for one in _narrow(size)),
        BranchedVariant(
            "oialr-paper",
            "OIALR, published settings",
            "settings of the authors' CIFAR-10 mini ViT, times scaled to the length of this run",
            cut=PUBLISHED,
        ),
        repaired,
        with_ranks_of(frozen_plain(50), repaired),
    )


def _branches() -> tuple[BranchedVariant, ...]:
    with_teacher = [branch(size, percent) for size, percent in _BRANCHES]
    alone = replace(
        next(one for one in with_teacher if one.name == "branch-50-20"),
        name="branch-50-20-alone",
        title="branch, 50 %, + 20 % of the steps, no teacher",
        note="the finished dense model, cut to 50 % of the numbers, trained on without a teacher",
        teacher=False,
    )
    return (*with_teacher, alone)


def _narrow(size: int) -> tuple[BranchedVariant, ...]:
    longest, alone = branch(size, dict(_BRANCHES)[size]), narrow(size)
    return tuple(one for full in (alone, taught(alone)) for one in (full, short(full, longest)))
