"""What is searched for forecasters: each method by itself, with as many trials per setting."""

from __future__ import annotations

from typing import Final

from orthotrain.lab.experiments.branches.variants import DENSE
from orthotrain.lab.experiments.forecasting.variants import HALF, REGULARISED, STRENGTHS
from orthotrain.lab.experiments.search import rate
from orthotrain.lab.run.space import Aim, Number, Part, Search

_ERROR: Final = (Aim("validation_mse"),)


def forecast_search(*, lr: tuple[float, float], seeds: tuple[int, ...]) -> Search:
    """The learning rate of each method.

    The regularised network also has weight decay and dropout to search. OIALR has one rate for all
    strengths, found at the second strength.

    Args:
        lr: Least and largest peak learning rate.
        seeds: Of the search.
    """
    alone = {"optim.lr": rate(*lr)}
    regularised = {
        **alone,
        "optim.weight_decay": Number(1e-3, 3.0, log=True),
        "model.dropout": Number(0.0, 0.5),
    }
    first, *others = (f"oialr-{place}" for place in (2, 1, *range(3, len(STRENGTHS) + 1)))
    return Search(
        (
            Part(DENSE, alone, _ERROR),
            Part(REGULARISED, regularised, _ERROR, times=len(regularised)),
            Part(f"narrow-{HALF}", alone, _ERROR),
            Part(first, alone, _ERROR, also=tuple(others)),
            Part(f"half-{HALF}", alone, _ERROR),
        ),
        seeds,
        trials=8,
    )
