"""Runs that compare low-rank training with dense training.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from orthotrain.lab.experiments.branches.variants import (
    DENSE,
    BranchedVariant,
    BranchOptim,
    branch,
    frozen,
    frozen_plain,
    half,
    narrow,
    short,
    taught,
    with_ranks_of,
)
from orthotrain.lab.experiments.classifier.config import (
    ClassifierRun,
    ModelConfig,
    OptimConfig,
    ResNetConfig,
)
from orthotrain.lab.run.config import need, positive
from orthotrain.lab.run.record import SeedFolder, read_json

PAPER, TUNED, NARROW = "oialr-paper", "oialr-tuned", "narrow"
#: Percent of the dense network's numbers that branch and rivals store.
HALF = 50


@dataclass(frozen=True)
class LowRankConfig:
    """Settings of AdaptiveLowRank with times as shares of the run, so they scale with its length.

    Attributes:
        delay_fraction: Dense steps before the switch over all steps, or auto.
        every_fraction: Steps between rank updates over all steps.
        rank: Rank rule: rank_rtol=0.1 drops singular values below this share of the largest (the
            paper's beta), energy=0.9 keeps this share of a layer's energy, stored_budget=0.5
            stores this share of the dense model's numbers.
        importance: The metric of the cut: of the loss, of inputs, or the weights alone (published).
        bases: Both factors trained, or a core between frozen bases (published).
        core_step: Factor on the steps of cores; 1 is published.
        layer_fraction: Each update reaches this much further to the front (the paper's alpha).
        max_drop: Largest share of a rank that one update drops.
        min_rank_fraction: Smallest rank over the layer's smaller side.
        dense_first: Leave the first layer dense; the last one always stays so.
        only_if_cheaper: A layer stays dense until its rank pays.
        optimizer_state: How optimizer state follows.
    """

    delay_fraction: float | Literal["auto"] = 50 / 300
    every_fraction: float = 10 / 300
    rank: str = "rank_rtol=0.1"
    importance: Literal["loss", "input", "weight"] = "weight"
    bases: Literal["trained", "frozen"] = "frozen"
    core_step: float | Literal["auto"] = 1.0
    layer_fraction: float = 0.1
    max_drop: float = 0.5
    min_rank_fraction: float = 0.01
    dense_first: bool = False
    only_if_cheaper: bool = True
    optimizer_state: Literal["rotate", "slice", "reset"] = "rotate"

    def __post_init__(self) -> None:
        need(
            self.delay_fraction == "auto" or 0 <= self.delay_fraction < 1,
            f"delay_fraction={self.delay_fraction} must lie in [0, 1) or be auto",
        )
        need(
            0 < self.every_fraction <= 1, f"every_fraction={self.every_fraction} must lie in (0, 1]"
        )
        # A usual rule is right by its form, without loading torch; any other is read now.
        if not re.fullmatch(r"(rank_rtol|energy|stored_budget)=0?\.\d*[1-9]\d*", self.rank):
            from orthotrain.lowrank import read_rule

            read_rule(self.rank)


@dataclass(frozen=True)
class BranchConfig(BranchOptim):
    """Training on after the finished dense model was cut.

    Attributes:
        steps_fraction: Its optimizer steps over those of dense training.
    """

    steps_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "branch", "steps_fraction")


@dataclass(frozen=True)
class LowRankVariant(BranchedVariant):
    """A way to train with or without low rank.

    Attributes:
        lowrank: Settings of AdaptiveLowRank, None for dense training.
        numbers: Narrow the network until it stores so many, None for its full width.
    """

    lowrank: LowRankConfig | None = None
    numbers: int | None = None

    def settings(self) -> Mapping[str, object]:
        """What result.json says about it, beside the network."""
        return {"lowrank": None if self.lowrank is None else asdict(self.lowrank)}

    def with_trainings(self, finished: Sequence[Path]) -> Self:
        """A rival of the size that the variant it needs ended with, the mean over seeds."""
        stored = [read_json(SeedFolder(one).result)["stored"] for one in finished]
        return replace(self, numbers=round(statistics.fmean(stored)))


@dataclass(frozen=True)
class ImageRun(ClassifierRun):
    """An image classifier, dense and low-rank side by side.

    Attributes:
        model: Network.
        optim: Optimizer and schedule.
        paper: Low-rank settings of the variant oialr-paper.
        branch: Training on after a cut.
    """

    model: ModelConfig | ResNetConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    paper: LowRankConfig = field(default_factory=LowRankConfig)
    branch: BranchConfig = field(default_factory=BranchConfig)


@dataclass(frozen=True)
class LowRankRun(ImageRun):
    """A mini vision transformer, dense and low-rank side by side.

    Attributes:
        model: Network.
        tuned: Low-rank settings of the variant oialr-tuned.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    tuned: LowRankConfig = field(default_factory=LowRankConfig)


def lowrank_variants(config: LowRankRun) -> tuple[BranchedVariant, ...]:
    """Dense, published, tuned with its narrow rival; then what stores half, branch and rivals."""
    return (*_tuned(config), *_halved(config))


def _tuned(config: LowRankRun) -> tuple[LowRankVariant, ...]:
    return (
        LowRankVariant(DENSE, "dense", "the same network without any method"),
        LowRankVariant(
            PAPER,
            "OIALR, published settings",
            "settings of the authors' CIFAR-10 mini ViT, times scaled to the length of this run",
            lowrank=config.paper,
        ),
        LowRankVariant(
            TUNED,
            "OIALR, tuned",
            "rule, threshold and delay chosen by a search on the validation part",
            lowrank=config.tuned,
        ),
        LowRankVariant(
            NARROW,
            "narrow dense",
            "a dense network, narrowed to the stored size that OIALR, tuned ended with",
            needs=TUNED,
        ),
    )


def _halved(config: LowRankRun) -> tuple[BranchedVariant, ...]:
    """Everything that stores half of the numbers."""
    part = config.branch
    after = replace(
        branch(HALF, round(100 * part.steps_fraction)),
        name=f"branch-{HALF}",
        branch=part.steps_fraction,
    )
    full, repaired = narrow(HALF), frozen(HALF)
    return (
        after,
        half(HALF),
        full,
        short(full, after),
        taught(full),
        repaired,
        with_ranks_of(frozen_plain(HALF), repaired),
    )
