"""What is searched for mini vision transformers, and the settings that searches found."""

from __future__ import annotations

from typing import Final

from orthotrain.lab.experiments.branches.variants import DENSE
from orthotrain.lab.experiments.lowrank.config import (
    HALF,
    PAPER,
    TUNED,
    LowRankConfig,
)
from orthotrain.lab.experiments.search import (
    BRANCH,
    FLOOR,
    OPTIM,
    Space,
    found_settings,
    published,
    rate,
    trained_factors,
)
from orthotrain.lab.run.space import COMPUTE, STORED, Aim, Number, Part, Search

_LOSS: Final = Aim("validation_loss")


def vit_search(*, lr: tuple[float, float], seeds: tuple[int, ...], within: float) -> Search:
    """Every way to train by a search of its own, with as many trials.

    Args:
        lr: Least and largest peak learning rate.
        seeds: Of the search.
        within: Validation loss above the dense network's that a smaller network may have.
    """
    own: Space = {"optim.lr": rate(*lr), **OPTIM, **FLOOR}
    both = (_LOSS, STORED)
    return Search(
        (
            Part(DENSE, own, (_LOSS,)),
            Part(PAPER, {**own, **published("paper")}, both, within, DENSE),
            Part(TUNED, {**own, **trained_factors("tuned")}, both, within, DENSE),
            Part(
                f"branch-{HALF}",
                {"branch.steps_fraction": Number(0.05, 0.4), **BRANCH},
                (_LOSS, COMPUTE),
                within,
                DENSE,
            ),
            Part(f"half-{HALF}", own, (_LOSS,)),
            Part(f"narrow-{HALF}", own, (_LOSS,), also=(f"narrow-{HALF}-short",)),
        ),
        seeds,
    )


def tuned_settings(file_name: str) -> LowRankConfig:
    """Settings that an earlier search found, in a file beside the recipes."""
    return LowRankConfig(**found_settings("lowrank", file_name)["lowrank"])
