"""What is searched for forecasters: each network by itself, with as many trials per setting."""

from __future__ import annotations

from typing import Final

from orthotrain.lab.experiments.branches.variants import DENSE
from orthotrain.lab.experiments.forecasting.variants import HALF, REGULARISED, STRENGTHS
from orthotrain.lab.experiments.search import rate
from orthotrain.lab.run.space import Aim, Number, Part, Search

_ERROR: Final = (Aim("validation_mse"),)


def forecast_search(*, lr: tuple[float, float], seeds: tuple[int, ...]) -> Search:
    """The learning rate of each network; of the regularised one what regularises it, too.

    Args:
        lr: Least and largest peak learning rate.
        seeds: Of the search.
    """
    regularised = {
        "rates.dense_regularised": rate(*lr),
        "regularised.weight_decay": Number(1e-3, 3.0, log=True),
        "regularised.dropout": Number(0.0, 0.5),
    }
    oialr = [f"oialr-{place}" for place in range(1, len(STRENGTHS) + 1)]
    return Search(
        (
            Part(DENSE, {"rates.dense": rate(*lr)}, _ERROR),
            Part(REGULARISED, regularised, _ERROR, times=len(regularised)),
            Part(f"narrow-{HALF}", {f"rates.narrow_{HALF}": rate(*lr)}, _ERROR),
            *(Part(name, {"rates.oialr": rate(*lr)}, _ERROR) for name in oialr),
            Part(f"half-{HALF}", {f"rates.half_{HALF}": rate(*lr)}, _ERROR),
        ),
        seeds,
        trials=8,
    )
