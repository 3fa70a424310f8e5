"""Mutual information of each code dimension with each factor, from joint histograms."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from orthotrain.disentangle._codes import Samples, bin_indices, checked_samples, require_count
from orthotrain.errors import ShapeError

# Chen et al. estimate with the encoder's density; 20 bins are the study's, Locatello et al. 2019.
DEFAULT_BINS = 20


def mutual_information(
    codes: Float[Tensor, "n d"], factors: Integer[Tensor, "n f"], *, bins: int = DEFAULT_BINS
) -> Float[Tensor, "d f"]:
    """``I(z_i; v_j)`` in nats of each code dimension, in bins, with each factor.

    The plug-in estimate ``sum p(b, v) log(p(b, v) / (p(b) p(v)))`` over the joint histogram of a
    code's bins, equal intervals from its minimum to its maximum, and a factor's values.

    Args:
        codes: ``(n, d)``, one row a sample.
        factors: ``(n, f)`` integers; their values are names, not numbers.
        bins: Intervals of a code dimension, at least 2.

    Returns:
        ``(d, f)`` float64 on CPU; zero for a dimension that is constant up to rounding and for a
        factor that takes one value.

    Raises:
        ShapeError: Not ``(n, d)`` and ``(n, f)`` with one ``n``, or fewer samples than cells of
            the joint histogram (occupied bins times values).
        ConfigError: ``bins`` below 2, codes not floating-point, factors not integers.
        NonFiniteError: NaN or infinity in the codes.

    Note:
        Not differentiable. Biased upwards: independent ones measure about
        ``(bins - 1) (values - 1) / (2 n)`` (Miller 1955), .03 nats for 20 bins, 32 values and
        10,000 samples. Blind to shift, scale and sign of a dimension.

    Source:
        Locatello et al. (2019), arXiv:1811.12359, for bins and estimate.

    Example:
        >>> factors = torch.tensor([[0], [0], [1], [1]])
        >>> mutual_information(factors.double(), factors).item()  # log 2
        0.693147...
    """
    function = "mutual_information"
    return information_matrix(function, checked_samples(function, codes, factors), bins)


def information_matrix(function: str, samples: Samples, bins: int) -> Tensor:
    """``mutual_information`` of checked samples; ``function`` is named in errors."""
    require_count(function, "bins", bins, at_least=2)
    index = bin_indices(samples, bins)
    occupied = max(len(column.unique()) for column in index.T)
    cells = occupied * max(samples.counts)
    if len(index) < cells:
        raise ShapeError(
            f"{function} needs as many samples as its joint histogram has cells, {occupied} bins "
            f"times {max(samples.counts)} values, got {len(index)}; draw at least {cells} samples "
            f"or take fewer bins"
        )
    marginal = [entropy(column) for column in index.T]
    rows = [
        [
            marginal[i] + entropy(levels) - entropy(index[:, i] * count + levels)
            for levels, count in zip(samples.levels.T, samples.counts, strict=True)
        ]
        for i in range(index.shape[1])
    ]
    # Independent ones may come out below zero by rounding.
    return torch.tensor(rows, dtype=torch.float64).clamp(min=0.0)


def entropy(labels: Tensor) -> float:
    """Plug-in entropy of ``(n,)`` non-negative integers in nats."""
    share = labels.bincount().double() / len(labels)
    return float(-torch.xlogy(share, share).sum())
