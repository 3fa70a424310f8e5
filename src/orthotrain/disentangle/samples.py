"""Codes and factors as every score takes them, the checks of settings, and the chance level.

Each check names the function the user called, so a message can be read without a traceback.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from orthotrain._checks import require_count, require_finite, require_tensor, require_values
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, OrthotrainWarning, ShapeError
from orthotrain.linalg._inputs import (
    power_of_two_scale,
    result_dtype,
)

# A constant that left a network in batches of different shapes differs by a few roundings, and
# its standard deviation is below that. A dimension that was learnt is above by far.
_DEAD_EPS = 32
# 10,000 training and 5,000 test samples: Locatello et al. (2019), for SAP and DCI.
_TRAIN_SHARE = 2 / 3


@dataclass(frozen=True)
class Samples:
    """Checked codes and factors on CPU.

    Attributes:
        codes: ``(n, d)`` float64, each column divided by a power of two so that its largest
            magnitude is in [1, 2): every score is blind to the scale of a dimension.
        live: ``(d,)`` bool; False for a dimension that is constant up to rounding.
        factors: ``(n, f)`` int64, as given.
        levels: ``(n, f)`` int64, the same values numbered from 0 in each column.
        counts: How many values each factor takes.
    """

    codes: Tensor
    live: Tensor
    factors: Tensor
    levels: Tensor
    counts: tuple[int, ...]

    def varying(self, function: str, *, least: int = 1) -> Samples:
        """The same without factors that take one value; warns where there are some.

        Raises:
            ConfigError: Fewer than ``least`` factors are left.
        """
        constant = [j for j, count in enumerate(self.counts) if count == 1]
        kept = [j for j, count in enumerate(self.counts) if count > 1]
        if len(kept) < least:
            raise ConfigError(
                f"{function} needs at least {least} factor{'s' * (least > 1)} with two "
                f"values or more, got {len(kept)} of {len(self.counts)}; draw samples in which "
                f"more factors vary"
            )
        if not constant:
            return self
        warnings.warn(
            f"{function}: column {', '.join(map(str, constant))} of the factors takes one value "
            f"and is left out of the score; draw samples in which it varies, or drop the column",
            OrthotrainWarning,
            stacklevel=3,
        )
        return replace(
            self,
            factors=self.factors[:, kept],
            levels=self.levels[:, kept],
            counts=tuple(self.counts[j] for j in kept),
        )

    def standardized(self) -> Tensor:
        """``(n, d)`` codes with mean 0 and standard deviation 1; a dead dimension is 0."""
        return standardized(self.codes, self.codes, self.live)

    def split(self, function: str, *, seed: int) -> tuple[Tensor, Tensor]:
        """Rows of a training part, two thirds drawn at random, and of the rest.

        Raises:
            ShapeError: A value of a factor does not occur in both parts.
        """
        order = torch.randperm(len(self.levels), generator=stream(function, seed))
        train, test = order.tensor_split([round(_TRAIN_SHARE * len(order))])
        for j, count in enumerate(self.counts):
            seen = [len(torch.unique(self.levels[part, j])) for part in (train, test)]
            if min(seen) < count:
                raise ShapeError(
                    f"{function} needs every value of a factor in its training part (two thirds "
                    f"of the samples) and in its test part; of the {count} values in column {j} "
                    f"of the factors, {len(order)} samples leave {seen[0]} and {seen[1]} there; "
                    f"draw more samples, or merge rare values"
                )
        return train, test


def checked_samples(function: str, codes: Tensor, factors: Tensor) -> Samples:
    """Codes and factors in the form all scores work with.

    Raises:
        ShapeError: Not ``(n, d)`` and ``(n, f)`` with the same ``n`` and none of them 0.
        ConfigError: Codes that are not real floating-point, factors that are not integers.
        NonFiniteError: NaN or infinity in the codes.
    """
    require_codes(function, codes, name="codes")
    if factors.ndim != 2 or 0 in factors.shape:
        raise ShapeError(
            f"{function} needs factors of shape (n, f) with n, f >= 1, got "
            f"{tuple(factors.shape)}; one row per sample, and factors[:, None] for a single factor"
        )
    require_values(function, "factors", factors)
    if len(codes) != len(factors):
        raise ShapeError(
            f"{function} needs one row of factors for each row of codes, got codes "
            f"{tuple(codes.shape)} and factors {tuple(factors.shape)}"
        )
    values = factors.detach().to("cpu", torch.int64)
    numbered = [torch.unique(column, return_inverse=True) for column in values.T]
    return Samples(
        codes=scaled_columns(codes.detach().to("cpu", torch.float64)),
        live=live_dimensions(codes),
        factors=values,
        levels=torch.stack([inverse for _, inverse in numbered], dim=1),
        counts=tuple(len(found) for found, _ in numbered),
    )


def require_codes(function: str, codes: Tensor, *, name: str) -> None:
    """Raise unless ``codes`` is a finite, real ``(n, d)`` with ``n, d >= 1``."""
    if codes.ndim != 2 or 0 in codes.shape:
        raise ShapeError(
            f"{function} needs {name} of shape (n, d) with n, d >= 1, got {tuple(codes.shape)}; "
            f"one row per sample: flatten with .flatten(1), and take codes[:, None] for a single "
            f"dimension"
        )
    require_tensor(function, name, codes)
    require_finite(function, name, codes)


def stream(function: str, seed: int) -> torch.Generator:
    """A CPU generator of its own for a function's draws; both torch and scikit-learn take the seed.

    Raises:
        ConfigError: ``seed`` is no integer in ``[0, 2**32)``.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise ConfigError(
            f"{function} needs seed to be an integer in [0, 2**32), got {seed!r}; 0 will do"
        )
    return torch.Generator().manual_seed(int(seed))


def scaled_columns(codes: Tensor) -> Tensor:
    """Each column over a power of two: no square of it overflows, and nothing is rounded."""
    return codes / power_of_two_scale(codes.T.unsqueeze(-1)).view(1, -1)


def live_dimensions(codes: Tensor) -> Tensor:
    """``(d,)`` bool on CPU: which columns of ``(n, d)`` vary by more than rounding.

    Rounding is that of the dtype the codes come in; half precision is taken at face value.
    """
    rounding = _DEAD_EPS * torch.finfo(result_dtype(codes.dtype)).eps
    scaled = scaled_columns(codes.detach().to("cpu", torch.float64))
    spread = scaled.std(dim=0, correction=0)
    live: Tensor = spread > rounding * scaled.abs().amax(dim=0)
    return live


def standardized(values: Tensor, like: Tensor, live: Tensor) -> Tensor:
    """``values`` over mean and deviation of the columns of ``like``; 0 where not ``live``."""
    std, mean = torch.std_mean(like, dim=0, correction=0)
    result: Tensor = torch.where(live, (values - mean) / torch.where(live, std, 1.0), 0.0)
    return result


def bin_indices(samples: Samples, bins: int) -> Tensor:
    """``(n, d)`` int64: which of ``bins`` equal intervals from minimum to maximum, from 0.

    An interval holds its lower end; the last one holds both. A dead dimension is in bin 0.
    """
    columns = samples.codes.T.contiguous()
    low, high = columns.aminmax(dim=1, keepdim=True)
    inner = torch.arange(1, bins, dtype=torch.float64) / bins
    index = torch.searchsorted(low + (high - low) * inner, columns, right=True).T
    return torch.where(samples.live, index, 0)


def concentration(importance: Tensor) -> float:
    """``1 - entropy / log(columns)`` of each row, weighted by the row's share of the whole.

    1 where each row has one entry, 0 where all entries are alike or zero.
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


@checked
def chance_level(
    score: Callable[[Tensor, Tensor], float],
    codes: Float[Tensor, "n d"],
    factors: Integer[Tensor, "n f"],
    *,
    seed: int,
    repeats: int = 10,
) -> ChanceLevel:
    """Level and spread of a score where the rows of the factors are permuted at random.

    A permutation breaks the relation between codes and factors. It keeps their distributions, the
    dependence of factors on each other, and the bias of the estimate at this number of samples.

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
    require_count("chance_level", "repeats", repeats, least=2)
    random = stream("chance_level", seed)
    values = []
    for _ in range(repeats):
        order = torch.randperm(len(factors), generator=random)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrthotrainWarning)
            values.append(float(score(codes, factors[order.to(factors.device)])))
    return ChanceLevel(statistics.fmean(values), statistics.stdev(values), tuple(values))
