"""Spaces that the searches of several families share, and the files that searches leave.

The bounds of clipping aside, ranges are those of the authors' search (arXiv:2401.08505): weight
decay 1e-5 to 0.5, warm-up of 1 to 20 of 300 epochs, threshold 0.01 to 0.9, updates every 200 to
1000 and a switch at 1000 to 10000 of 14,700 steps. Their learning rates belong to a network of
width 768, so each recipe has its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final

from orthotrain.lab.run.space import Aim, Number, OneOf, Part, Search

Space = Mapping[str, Number | OneOf]
# 300 epochs of 50,000 images in batches of 1024.
_STEPS: Final = 14_700


def rate(low: float, high: float) -> Number:
    """A peak learning rate."""
    return Number(low, high, log=True)


#: Every optimizer's, beside its learning rate.
OPTIM: Final[Space] = {
    "optim.weight_decay": Number(1e-5, 0.5, log=True),
    "optim.clip_norm": Number(0.1, 10.0, log=True),
    "optim.warmup_fraction": Number(1 / 300, 20 / 300, log=True),
}
#: Where the schedule has a floor: the least rate over the peak.
FLOOR: Final[Space] = {"optim.min_lr": Number(5e-3, 1.0, log=True, of="optim.lr")}
#: After the cut of a finished model: its rate, its warm-up, how much the teacher says.
BRANCH: Final[Space] = {
    "branch.rate_factor": Number(0.1, 3.0, log=True),
    "branch.warmup_fraction": Number(0.01, 0.2),
    "branch.teacher_share": Number(0.1, 1.0),
}


def published(group: str) -> Space:
    """Threshold, steps between updates and switch of the published method."""
    return {
        f"{group}.rank": Number(0.01, 0.9, log=True, form="rank_rtol={:.3g}"),
        f"{group}.every_fraction": Number(200 / _STEPS, 1000 / _STEPS),
        f"{group}.delay_fraction": Number(1000 / _STEPS, 10_000 / _STEPS),
    }


def trained_factors(group: str) -> Space:
    """Budget and switch of low-rank training, what its cut is measured in, what is trained."""
    return {
        f"{group}.rank": Number(0.2, 0.9, form="stored_budget={:.3g}"),
        f"{group}.delay_fraction": Number(0.1, 0.7),
        f"{group}.importance": OneOf(("loss", "input", "weight")),
        f"{group}.bases": OneOf(("trained", "frozen")),
    }


def listed_rates(
    rates: tuple[float, ...],
    variants: Sequence[str],
    *,
    aim: Aim,
    seeds: tuple[int, ...],
) -> Search:
    """The same short list of peak learning rates for each variant, for trainings that take long.

    Args:
        rates: The list, as multiples of the recipe's own rate; each is tried once.
        variants: Their names.
        aim: What decides.
        seeds: Of the search.
    """
    parts = tuple(
        Part(variant, {"optim.lr": OneOf(rates, of="optim.lr")}, (aim,)) for variant in variants
    )
    return Search(parts, seeds, trials=len(rates))


# --- what a search left -------------------------------------------------------------------------


def found_settings(family: str, file_name: str) -> dict[str, Any]:
    """What an earlier search left in a file beside the recipes of a family."""
    folder = resources.files(f"orthotrain.lab.experiments.{family}.recipes")
    settings: dict[str, Any] = json.loads(folder.joinpath(file_name).read_text(encoding="utf-8"))
    return settings
