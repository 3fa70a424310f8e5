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
    regularised = {
        "rates.dense_regularised": rate(*lr),
        "regularised.weight_decay": Number(1e-3, 3.0, log=True),
        "regularised.dropout": Number(0.0, 0.5),
    }
    first, *others = (f"oialr-{place}" for place in (2, 1, *range(3, len(STRENGTHS) + 1)))
    return Search(
        (
            Part(DENSE, {"rates.dense": rate(*lr)}, _ERROR),
            Part(REGULARISED, regularised, _ERROR, times=len(regularised)),
            Part(f"narrow-{HALF}", {f"rates.narrow_{HALF}": rate(*lr)}, _ERROR),
            Part(first, {"rates.oialr": rate(*lr)}, _ERROR, also=tuple(others)),
            Part(f"half-{HALF}", {f"rates.half_{HALF}": rate(*lr)}, _ERROR),
        ),
        seeds,
        trials=8,
    )
