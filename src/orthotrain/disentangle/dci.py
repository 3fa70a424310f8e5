"""Disentanglement, completeness and informativeness (DCI) from importances of predictors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, assert_never, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from orthotrain.disentangle._codes import checked_samples, scikit_learn
from orthotrain.errors import ConfigError

DciModel = Literal["gradient_boosting", "random_forest"]


@dataclass(frozen=True, eq=False)
class DciScore:
    """What ``dci`` measured.

    Attributes:
        disentanglement: In [0, 1]; 1 where each dimension is of use for one factor.
        completeness: In [0, 1]; 1 where each factor is predicted from one dimension.
        informativeness: Share of held-out samples whose factors are predicted right, mean over
            factors; 1 is all.
        informativeness_chance: The same for a predictor that always names the most frequent
            value. Chance of the other two: ``chance_level``.
        importance: ``(d, f)`` float64; each column sums to 1, or is 0 where nothing was of use.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    informativeness_chance: float
    importance: Float[Tensor, "d f"]


def dci(
    codes: Float[Tensor, "n d"],
    factors: Integer[Tensor, "n f"],
    *,
    model: DciModel = "gradient_boosting",
    seed: int = 0,
) -> DciScore:
    """Disentanglement, completeness and informativeness (DCI) of codes.

    A classifier a factor is fitted on all dimensions; ``R_ij`` is the importance of dimension
    ``i`` for factor ``j``. With entropies ``H`` of what is normalized to sum 1:

    - disentanglement ``sum_i rho_i (1 - H(R_i,:) / log f)``, ``rho_i = sum_j R_ij / sum R``
    - completeness ``sum_j rho_j (1 - H(R_:,j) / log d)``, ``rho_j = sum_i R_ij / sum R``
    - informativeness: mean accuracy on samples that were not fitted

    Args:
        codes: ``(n, d)``; 10,000 to 15,000 samples are usual. With ``d = 1`` completeness says
            nothing and is 1. Dimensions are standardized first.
        factors: ``(n, f)`` integers, of which at least two vary; their values are names, not
            numbers. A factor that takes one value is left out, with a warning.
        model: scikit-learn's ``"gradient_boosting"`` with its defaults, as published, or its
            ``"random_forest"``, one of the paper's predictors, with all dimensions tried at every
            split, as the paper's regression forests do. For factors of 3, 6, 32 and 32 values and
            10,000 samples of 6 rotated dimensions boosting takes minutes on one core, sixteen
            times as long as the forest.
        seed: Of the split, two thirds for the fit, and of the model.

    Returns:
        The scores. A constant dimension has no importance and counts in ``d``. Codes that are all
        constant score 0 in the first two.

    Raises:
        ShapeError: Not ``(n, d)`` and ``(n, f)`` with one ``n``, or a value of a factor that is
            not in both parts of the split.
        ConfigError: Unknown ``model``, codes not floating-point, factors not integers, fewer than
            two factors that vary, a seed outside ``[0, 2**32)``, or scikit-learn is not installed.
        NonFiniteError: NaN or infinity in the codes.

    Warns:
        OrthotrainWarning: A factor takes one value.

    Note:
        Not differentiable. The same for the same seed. Blind to shift and scale of dimensions up
        to rounding, and in the first two to any increasing map of a dimension. Equal dimensions
        share importance: they lower completeness, not disentanglement.

    Source:
        Eastwood and Williams (2018), ICLR, section 2, with prediction errors in place of
        accuracy. Gradient boosting, accuracy and weights: Locatello et al. (2019),
        arXiv:1811.12359.

    Example:
        >>> factors = torch.cartesian_prod(*[torch.arange(3)] * 3).repeat(6, 1)
        >>> score = dci(factors.double(), factors, model="random_forest")
        >>> score.disentanglement, score.completeness, score.informativeness
        (1.0, 1.0, 1.0)
    """
    if model not in get_args(DciModel):
        raise ConfigError(
            f"dci needs model to be one of {', '.join(get_args(DciModel))}, got {model!r}; "
            f"'gradient_boosting' is the published one"
        )
    samples = checked_samples("dci", codes, factors).varying("dci", at_least=2)
    train, test = samples.split("dci", seed=seed)
    # A dead dimension would still take part in the models' draws.
    inputs = samples.standardized()[:, samples.live].numpy()
    table = torch.zeros(len(samples.live), len(samples.counts), dtype=torch.float64)
    accuracy, chance = [], []
    for j, levels in enumerate(samples.levels.T):
        known, truth = levels[train], levels[test]
        named = known.bincount().argmax().expand(len(test))
        chance.append(float((named == truth).double().mean()))
        if inputs.shape[1] > 0:
            classifier = _classifier(model, seed)
            classifier.fit(inputs[train], known.numpy())
            # Boosting gives a useless dimension a gain of rounding, of either sign.
            importance = torch.from_numpy(classifier.feature_importances_).clamp(min=0)
            table[samples.live, j] = importance.double()
            named = torch.from_numpy(classifier.predict(inputs[test]))
        accuracy.append(float((named == truth).double().mean()))
    return DciScore(
        disentanglement=concentration(table),
        completeness=concentration(table.T),
        informativeness=sum(accuracy) / len(accuracy),
        informativeness_chance=sum(chance) / len(chance),
        importance=table,
    )


def _classifier(model: DciModel, seed: int) -> Any:
    ensemble = scikit_learn("dci", "ensemble")
    match model:
        case "gradient_boosting":
            return ensemble.GradientBoostingClassifier(random_state=seed)
        case "random_forest":
            return ensemble.RandomForestClassifier(max_features=None, random_state=seed)
        case _:
            assert_never(model)


def concentration(importance: Tensor) -> float:
    """``1 - entropy / log(columns)`` of each row, weighted by the row's share of the whole.

    1 where each row has one entry, 0 where all are alike or there are none.
    """
    total = importance.sum()
    if total == 0:
        return 0.0
    if importance.shape[1] == 1:
        return 1.0
    rows = importance.sum(dim=1, keepdim=True)
    share = importance / torch.where(rows > 0, rows, 1.0)
    entropy = -torch.xlogy(share, share).sum(dim=1) / math.log(importance.shape[1])
    return float(((1 - entropy) * rows.squeeze(1) / total).sum())
