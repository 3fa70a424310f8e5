"""Scores of codes against known factors: mutual information, MIG, modularity, SAP and DCI.

Codes are ``(n, d)``, one row per sample; factors are ``(n, f)`` integers. All scores are blind to
order, sign, shift and scale of the code dimensions, up to rounding. None is differentiable. Bins,
predictors and numbers of samples follow Locatello et al. (2019), arXiv:1811.12359.
``chance_level`` measures what each of them gives to codes that know nothing of the factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from orthotrain._checks import require_count
from orthotrain._doors import checked
from orthotrain.disentangle.samples import (
    Samples,
    bin_indices,
    checked_samples,
    concentration,
)
from orthotrain.errors import ShapeError
from orthotrain.extras import optional_module

SapKind = Literal["continuous", "discrete"]
DciModel = Literal["gradient_boosting", "random_forest"]

# Chen et al. estimate with the encoder's density; 20 bins are the study's, Locatello et al. 2019.
_BINS = 20
# Entropies of up to ten nats, summed over up to a thousand cells, are right to 1e-13 or better.
_ZERO_NATS = 1e-12
# The penalty of the published code, Locatello et al. (2019).
_SVM_C = 0.01


@checked
def mutual_information(
    codes: Float[Tensor, "n d"], factors: Integer[Tensor, "n f"], *, bins: int = _BINS
) -> Float[Tensor, "d f"]:
    """``I(z_i; v_j)`` in nats of each code dimension, in bins, with each factor.

    The plug-in estimate ``sum p(b, v) log(p(b, v) / (p(b) p(v)))`` over the joint histogram. Bins
    are equal intervals from the minimum of a code dimension to its maximum.

    Args:
        codes: ``(n, d)``, one row per sample.
        factors: ``(n, f)`` integers. Their values are names, not numbers.
        bins: Intervals per code dimension, at least 2.

    Returns:
        ``(d, f)`` float64 on CPU. Zero for a dimension that is constant up to rounding, and for a
        factor that takes one value.

    Raises:
        ShapeError: Not ``(n, d)`` and ``(n, f)`` with one ``n``, or fewer samples than cells of
            the joint histogram (occupied bins times values).
        ConfigError: ``bins`` below 2, codes not floating-point, or factors not integers.
        NonFiniteError: NaN or infinity in the codes.

    Note:
        Biased upwards by about ``(bins - 1) (values - 1) / (2 n)`` where codes and factors are
        independent (Miller 1955): .03 nats for 20 bins, 32 values and 10,000 samples.

    Example:
        >>> factors = torch.tensor([[0], [0], [1], [1]])
        >>> mutual_information(factors.double(), factors).item()  # log 2
        0.693147...
    """
    name = "mutual_information"
    return _information(name, checked_samples(name, codes, factors), bins)


@checked
def mig(
    codes: Float[Tensor, "n d"], factors: Integer[Tensor, "n f"], *, bins: int = _BINS
) -> float:
    """Mutual information gap (MIG), in [0, 1]; 1 where one dimension alone tells each factor.

    ``mean_j (I(z_1st; v_j) - I(z_2nd; v_j)) / H(v_j)``, where ``1st`` and ``2nd`` are the two
    dimensions with the most information about factor ``j``. A dimension that tells several
    factors is not punished.

    Args:
        codes: ``(n, d)``; 10,000 samples are usual. With ``d = 1`` the second information is 0.
        factors: ``(n, f)`` integers. A factor that takes one value is left out, with a warning.
        bins: Intervals per code dimension. **A dimension cannot tell apart more values than
            that**: codes equal to factors of 3, 6, 20 and 32 evenly spread values score 1, 1, 1
            and .85 with 20 bins, and 1 with 32.

    Returns:
        The score; 0 where all codes are constant. The chance level is near 0, since the bias of
        the estimate is alike in both dimensions.

    Raises:
        ShapeError, ConfigError, NonFiniteError: As ``mutual_information``; also where no factor
            varies.

    Source:
        Chen et al. (2018), arXiv:1802.04942, equation 6, with bins for the encoder's density.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(3), torch.arange(4)).repeat(2, 1)
        >>> codes = factors.double()
        >>> round(mig(codes, factors), 6), mig(codes[:, [0, 0, 1, 1]], factors)
        (1.0, 0.0)
    """
    samples = checked_samples("mig", codes, factors).varying("mig")
    information = _information("mig", samples, bins).sort(dim=0, descending=True).values
    gap = information[0] - information[1] if len(information) > 1 else information[0]
    shares = [float(g) / _entropy(v) for g, v in zip(gap, samples.levels.T, strict=True)]
    return sum(shares) / len(shares)


@checked
def modularity(
    codes: Float[Tensor, "n d"], factors: Integer[Tensor, "n f"], *, bins: int = _BINS
) -> float:
    """Modularity, in [0, 1]; 1 where each dimension tells about one factor alone.

    With ``m = I(z_i; v_j)`` and ``t_i = max_j m_ij``, the mean over dimensions of
    ``1 - (sum_j m_ij^2 - t_i^2) / (t_i^2 (f - 1))``. Two things are not punished: several
    dimensions that tell about one factor, and a factor that no dimension tells.

    Args:
        codes: ``(n, d)``; 10,000 samples are usual.
        factors: ``(n, f)`` integers, of which at least two vary. A factor that takes one value is
            left out, with a warning.
        bins: Intervals per code dimension.

    Returns:
        The score over the dimensions that tell anything; 0 where none does. The published code
        counts a dimension that tells nothing as 0. In the paper it is 0 / 0.

    Raises:
        ShapeError, ConfigError, NonFiniteError: As ``mutual_information``; also where fewer than
            two factors vary.

    Note:
        **The chance level is not 0.** A dimension of pure noise has the estimate's bias, which
        grows with the number of values, so it seems to tell about the largest factor: .7 with
        factors of 3, 6, 32 and 32 values. Read a score beside its ``chance_level``.

    Source:
        Ridgeway and Mozer (2018), arXiv:1802.05312, section 3.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat(3, 1)
        >>> both = (3 * factors[:, :1] + factors[:, 1:]).double()
        >>> round(modularity(factors.double(), factors), 6), round(modularity(both, factors), 6)
        (1.0, 0.0)
    """
    samples = checked_samples("modularity", codes, factors).varying("modularity", least=2)
    information = _information("modularity", samples, bins)
    told = information[information.amax(dim=1) > _ZERO_NATS]
    if len(told) == 0:
        return 0.0
    squares = (told / told.amax(dim=1, keepdim=True)).square()
    others = (squares.sum(dim=1) - 1) / (squares.shape[1] - 1)
    return float((1 - others).mean())


@checked
def sap(
    codes: Float[Tensor, "n d"],
    factors: Integer[Tensor, "n f"],
    *,
    kind: SapKind = "continuous",
    seed: int = 0,
) -> float:
    """Separated attribute predictability (SAP), in [0, 1]: lead of the best single predictor.

    ``mean_j (S_1st,j - S_2nd,j)``, where ``S_ij`` says how well dimension ``i`` alone predicts
    factor ``j``. ``1st`` and ``2nd`` are the two best dimensions for that factor.

    Args:
        codes: ``(n, d)``; 10,000 to 15,000 samples are usual. With ``d = 1`` the second predictor
            is one that sees nothing.
        factors: ``(n, f)`` integers. A factor that takes one value is left out, with a warning.
        kind: What ``S_ij`` is; choose by the factors.

            - ``"continuous"`` is right where the integers are an order. ``R^2`` of a straight line
              from the code to the integers over all samples. Codes equal to independent factors
              score 1.
            - ``"discrete"`` is right where the values are names. Balanced accuracy of a linear SVM
              (one against the rest, squared hinge, balanced classes, ``C = .01``) on the
              standardized code, fitted on two thirds of the samples and measured on the rest.
              **It does not reach 1**: other dimensions guess ``1 / values`` right, and a line
              cannot cut out the values in between. With codes equal to factors of 2, 3, 6 and 32
              evenly spread values the SVM is right in 1, 1, .67 and .06. Needs scikit-learn.
        seed: Of the split for ``"discrete"``; ``"continuous"`` draws nothing.

    Returns:
        The score; its chance level is near 0. A constant dimension predicts like one that sees
        nothing: 0 for ``"continuous"``, ``1 / values`` for ``"discrete"`` (0 in the paper).

    Raises:
        ShapeError, ConfigError, NonFiniteError: As ``mutual_information``; also fewer than three
            samples, no factor that varies, an unknown ``kind``, and for ``"discrete"`` a seed
            outside ``[0, 2**32)`` or a value that is not in both parts of the split.
        MissingPackageError: ``"discrete"`` without scikit-learn.

    Source:
        Kumar, Sattigeri and Balakrishnan (2018), arXiv:1711.00848, section 3, which fits
        thresholds where factors are discrete. The SVM in their place is Locatello et al.'s, there
        without standardization and with the plain accuracy.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(3), torch.arange(4))
        >>> round(sap(2.0 * factors - 1, factors), 6)
        1.0
    """
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


@dataclass(frozen=True, eq=False)
class DciScore:
    """What ``dci`` measured.

    Attributes:
        disentanglement: In [0, 1]; 1 where each dimension is of use for one factor.
        completeness: In [0, 1]; 1 where each factor is predicted from one dimension.
        informativeness: Share of held-out samples predicted right, mean over factors.
        informativeness_chance: The same for a predictor that always names the most frequent
            value. ``chance_level`` measures the chance level of the other two.
        importance: ``(d, f)`` float64; each column sums to 1, or is 0 where nothing was of use.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    informativeness_chance: float
    importance: Float[Tensor, "d f"]


@checked
def dci(
    codes: Float[Tensor, "n d"],
    factors: Integer[Tensor, "n f"],
    *,
    model: DciModel = "gradient_boosting",
    seed: int = 0,
) -> DciScore:
    """Disentanglement, completeness and informativeness (DCI) of codes.

    One classifier per factor is fitted on all dimensions. ``R_ij`` is the importance of dimension
    ``i`` for factor ``j``. With entropies ``H`` of what is normalized to sum 1:

    - disentanglement ``sum_i rho_i (1 - H(R_i,:) / log f)``, ``rho_i = sum_j R_ij / sum R``
    - completeness ``sum_j rho_j (1 - H(R_:,j) / log d)``, ``rho_j = sum_i R_ij / sum R``
    - informativeness: mean accuracy on samples that were not fitted

    Args:
        codes: ``(n, d)``; 10,000 to 15,000 samples are usual. With ``d = 1`` completeness is 1.
        factors: ``(n, f)`` integers, of which at least two vary. A factor that takes one value is
            left out, with a warning.
        model: scikit-learn's ``"gradient_boosting"`` with its defaults, as published, or its
            ``"random_forest"`` with all dimensions tried at every split. Boosting takes minutes
            for 10,000 samples of 6 dimensions, sixteen times as long as the forest. The forest
            takes 1.03 times scikit-learn's own with that setting, and 1.4 times its default, which
            tries the root of their number.
        seed: Of the split, two thirds for the fit, and of the model.

    Returns:
        The scores. A constant dimension has no importance and counts in ``d``; where all are
        constant, the first two scores are 0. Copies of a dimension lower completeness alone.

    Raises:
        ShapeError, ConfigError, NonFiniteError: As ``sap`` with ``"discrete"``; also an unknown
            ``model``, or fewer than two factors that vary.
        MissingPackageError: scikit-learn is not installed.

    Source:
        Eastwood and Williams (2018), ICLR, section 2, there with prediction errors for accuracy.

    Example:
        >>> factors = torch.cartesian_prod(*[torch.arange(3)] * 3).repeat(6, 1)
        >>> score = dci(factors.double(), factors, model="random_forest")
        >>> score.disentanglement, score.completeness, score.informativeness
        (1.0, 1.0, 1.0)
    """
    samples = checked_samples("dci", codes, factors).varying("dci", least=2)
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
    ensemble = optional_module("dci", "sklearn.ensemble", package="scikit-learn")
    match model:
        case "gradient_boosting":
            return ensemble.GradientBoostingClassifier(random_state=seed)
        case "random_forest":
            return ensemble.RandomForestClassifier(max_features=None, random_state=seed)
        case _:
            assert_never(model)


def _information(function: str, samples: Samples, bins: int) -> Tensor:
    require_count(function, "bins", bins, least=2)
    index = bin_indices(samples, bins)
    occupied = max(len(column.unique()) for column in index.T)
    cells = occupied * max(samples.counts)
    if len(index) < cells:
        raise ShapeError(
            f"{function} needs as many samples as its joint histogram has cells, {occupied} bins "
            f"times {max(samples.counts)} values, got {len(index)}; draw at least {cells} samples "
            f"or take fewer bins"
        )
    marginal = [_entropy(column) for column in index.T]
    rows = [
        [
            marginal[i] + _entropy(levels) - _entropy(index[:, i] * count + levels)
            for levels, count in zip(samples.levels.T, samples.counts, strict=True)
        ]
        for i in range(index.shape[1])
    ]
    # Independent ones may come out below zero by rounding.
    return torch.tensor(rows, dtype=torch.float64).clamp(min=0.0)


def _entropy(labels: Tensor) -> float:
    """Plug-in entropy of ``(n,)`` non-negative integers in nats."""
    share = labels.bincount().double() / len(labels)
    return float(-torch.xlogy(share, share).sum())


def _r_squared(samples: Samples) -> Tensor:
    """``(d, f)`` squared correlations; 0 for a dead dimension."""
    factors = samples.factors.double()
    factors = factors - factors.mean(dim=0)
    factors = factors / factors.square().mean(dim=0).sqrt()
    correlation: Tensor = samples.standardized().T @ factors / len(factors)
    return correlation.square()


def _svm_accuracy(samples: Samples, seed: int) -> Tensor:
    """``(d, f)`` balanced accuracy on the held-out part; 0 for a dead dimension."""
    svm = optional_module("sap", "sklearn.svm", package="scikit-learn")
    train, test = samples.split("sap", seed=seed)
    codes = samples.standardized().numpy()
    accuracy = torch.zeros(codes.shape[1], len(samples.counts), dtype=torch.float64)
    for j, levels in enumerate(samples.levels.T.numpy()):
        for i in samples.live.nonzero().flatten().tolist():
            # The primal problem draws nothing, and yet takes a number from numpy's global
            # generator unless it is given a seed.
            options = {"class_weight": "balanced", "dual": False, "random_state": seed}
            machine = svm.LinearSVC(C=_SVM_C, **options)
            machine.fit(codes[train, i : i + 1], levels[train])
            right = torch.from_numpy(machine.predict(codes[test, i : i + 1]) == levels[test])
            truth = samples.levels[test, j]
            shares = right.double() / truth.bincount()[truth]
            accuracy[i, j] = shares.sum() / samples.counts[j]
    return accuracy
