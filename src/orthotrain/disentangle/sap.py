"""Separated attribute predictability (SAP): the lead of the best single predictor of a factor."""

from __future__ import annotations

from typing import Literal, assert_never, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from orthotrain.disentangle._codes import Samples, checked_samples, scikit_learn
from orthotrain.errors import ConfigError, ShapeError

SapKind = Literal["continuous", "discrete"]

# The penalty of the published code, Locatello et al. (2019).
_SVM_C = 0.01


def sap(
    codes: Float[Tensor, "n d"],
    factors: Integer[Tensor, "n f"],
    *,
    kind: SapKind = "continuous",
    seed: int = 0,
) -> float:
    """Separated attribute predictability (SAP), in [0, 1]: first minus second predictor.

    ``mean_j (S_1st,j - S_2nd,j)``, where ``S_ij`` says how well dimension ``i`` alone predicts
    factor ``j`` and ``1st``, ``2nd`` are its two best dimensions.

    Args:
        codes: ``(n, d)``; 10,000 to 15,000 samples are usual. With ``d = 1`` the second predictor
            is one that sees nothing.
        factors: ``(n, f)`` integers. A factor that takes one value is left out, with a warning.
        kind: What ``S_ij`` is; choose by the factors.

            - ``"continuous"``: ``R^2`` of a straight line from the code to the factor's integers,
              ``cov^2 / (var var)`` over all samples. Right where the integers are an order. Codes
              equal to independent factors score 1.
            - ``"discrete"``: balanced accuracy of a linear SVM (one against the rest, squared
              hinge, balanced classes, ``C = .01``) on the standardized code, fitted on two thirds
              of the samples and measured on the rest. Right where the values are names. **It does
              not reach 1**: other dimensions guess ``1 / values`` right, and a line cannot cut
              out the values in between: with codes equal to factors of 2, 3, 6 and 32 evenly
              spread values the SVM is right in 1, 1, .67 and .06. Needs scikit-learn.
        seed: Of the split for ``"discrete"``; ``"continuous"`` draws nothing.

    Returns:
        The score. A constant dimension predicts like one that sees nothing: 0 for
        ``"continuous"``, ``1 / values`` for ``"discrete"``. (The paper gives it 0 in both, so
        that there a single live dimension leads by what a guess is worth.)

    Raises:
        ShapeError: Not ``(n, d)`` and ``(n, f)`` with one ``n``; fewer than three samples; for
            ``"discrete"`` a value that is not in both parts of the split.
        ConfigError: Unknown ``kind``, codes not floating-point, factors not integers, no factor
            that varies, a seed outside ``[0, 2**32)``, or scikit-learn is not installed.
        NonFiniteError: NaN or infinity in the codes.

    Warns:
        OrthotrainWarning: A factor takes one value.

    Note:
        Not differentiable. Chance is near 0; ``chance_level`` measures it. Blind to order, sign,
        shift and scale of dimensions; ``"discrete"`` to the factors' numbering, too.

    Source:
        Kumar, Sattigeri and Balakrishnan (2018), arXiv:1711.00848, section 3, which fits
        thresholds where factors are discrete. The SVM in their place: Locatello et al. (2019),
        arXiv:1811.12359, without the standardization (so blind to no scale) and with the plain
        accuracy, which is the same where all values are equally frequent.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(3), torch.arange(4))
        >>> round(sap(2.0 * factors - 1, factors), 6)
        1.0
    """
    if kind not in get_args(SapKind):
        raise ConfigError(
            f"sap needs kind to be one of {', '.join(get_args(SapKind))}, got {kind!r}; "
            f"'continuous' fits factors whose integers are an order"
        )
    samples = checked_samples("sap", codes, factors).varying("sap")
    if len(samples.codes) < 3:
        raise ShapeError(
            f"sap needs at least 3 samples, since a line through 2 is always right, got "
            f"{len(samples.codes)}; draw more"
        )
    match kind:
        case "continuous":
            predictability = _r_squared(samples)
            blind = torch.zeros(len(samples.counts), dtype=torch.float64)
        case "discrete":
            predictability = _svm_accuracy(samples, seed)
            blind = 1 / torch.tensor(samples.counts, dtype=torch.float64)
        case _:
            assert_never(kind)
    predictability[~samples.live] = blind
    best = torch.cat([predictability, blind[None]]) if len(predictability) == 1 else predictability
    best = best.sort(dim=0, descending=True).values
    return float((best[0] - best[1]).mean())


def _r_squared(samples: Samples) -> Tensor:
    """``(d, f)`` squared correlations; 0 for a dead dimension."""
    factors = samples.factors.double()
    factors = factors - factors.mean(dim=0)
    factors = factors / factors.square().mean(dim=0).sqrt()
    correlation: Tensor = samples.standardized().T @ factors / len(factors)
    return correlation.square()


def _svm_accuracy(samples: Samples, seed: int) -> Tensor:
    """``(d, f)`` balanced accuracy on the held-out part; 0 for a dead dimension."""
    svm = scikit_learn("sap", "svm")
    train, test = samples.split("sap", seed=seed)
    codes = samples.standardized().numpy()
    accuracy = torch.zeros(codes.shape[1], len(samples.counts), dtype=torch.float64)
    for j, levels in enumerate(samples.levels.T.numpy()):
        for i in samples.live.nonzero().flatten().tolist():
            # The primal problem draws nothing, and yet takes a number from numpy's global
            # generator unless it is given a seed.
            machine = svm.LinearSVC(
                C=_SVM_C, class_weight="balanced", dual=False, random_state=seed
            )
            machine.fit(codes[train, i : i + 1], levels[train])
            right = torch.from_numpy(machine.predict(codes[test, i : i + 1]) == levels[test])
            truth = samples.levels[test, j]
            shares = right.double() / truth.bincount()[truth]
            accuracy[i, j] = shares.sum() / samples.counts[j]
    return accuracy
