"""What a score gives codes that know nothing of the factors, measured on the codes at hand."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from orthotrain.disentangle._codes import checked_samples, require_count, require_seed
from orthotrain.errors import OrthotrainWarning


@dataclass(frozen=True)
class ChanceLevel:
    """A score without any relation between codes and factors.

    Attributes:
        level: Mean over the repeats.
        spread: Standard deviation over the repeats.
        values: The score of each repeat.
    """

    level: float
    spread: float
    values: tuple[float, ...]


def chance_level(
    score: Callable[[Tensor, Tensor], float],
    codes: Float[Tensor, "n d"],
    factors: Integer[Tensor, "n f"],
    *,
    seed: int,
    repeats: int = 10,
) -> ChanceLevel:
    """Level and spread of a score when rows of factors are dealt to codes at random.

    A permutation keeps what codes and factors are by themselves, among them the dependence of
    factors on each other, and the bias of the estimate at this number of samples.

    Args:
        score: A function of codes and factors, for instance ``mig`` or
            ``lambda codes, factors: dci(codes, factors).disentanglement``.
        codes: ``(n, d)``.
        factors: ``(n, f)`` integers.
        seed: Of the permutations.
        repeats: How many, at least 2.

    Returns:
        Mean and standard deviation over the repeats, and each of them.

    Raises:
        ShapeError, ConfigError, NonFiniteError: Codes and factors that no score takes, a seed
            outside ``[0, 2**32)``, or fewer than two repeats.

    Note:
        Warnings about factors that take one value are not repeated here.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(8), torch.arange(8)).repeat(10, 1)
        >>> from orthotrain.disentangle import mig
        >>> chance = chance_level(mig, factors.double(), factors, seed=0)
        >>> chance.level < 0.05, chance.spread < 0.05
        (True, True)
    """
    checked_samples("chance_level", codes, factors)
    require_count("chance_level", "repeats", repeats, at_least=2)
    generator = torch.Generator().manual_seed(require_seed("chance_level", seed))
    values = []
    for _ in range(repeats):
        order = torch.randperm(len(factors), generator=generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrthotrainWarning)
            values.append(float(score(codes, factors[order.to(factors.device)])))
    return ChanceLevel(statistics.fmean(values), statistics.stdev(values), tuple(values))
