"""What is searched for language models."""

from __future__ import annotations

from typing import Final

from orthotrain.lab.experiments.branches.variants import DENSE
from orthotrain.lab.experiments.language.variants import SIZES
from orthotrain.lab.experiments.search import BRANCH, OPTIM, rate
from orthotrain.lab.run.space import Aim, Part, Search

_BITS: Final = (Aim("validation_bits"),)


def gpt_search(*, lr: tuple[float, float], seeds: tuple[int, ...]) -> Search:
    """Each network by a search of its own, with as many trials.

    Args:
        lr: Least and largest peak learning rate.
        seeds: Of the search.
    """
    dense = {"optim.lr": rate(*lr), **OPTIM}
    narrow = [f"narrow-{size}{end}" for size in SIZES for end in ("", "-teacher")]
    return Search(
        (
            Part(DENSE, dense, _BITS),
            Part("half-50", dense, _BITS),
            Part("oialr-paper", dense, _BITS),
            Part("branch-50-20", BRANCH, _BITS),
            *(Part(name, dense, _BITS, also=(f"{name}-short",)) for name in narrow),
        ),
        seeds,
    )
