"""How many directions a spectrum has: the only truncation rules in the package.

A threshold relative to the largest singular value (``beta`` of OIALR, arXiv:2401.08505), a share
of the energy, or a budget of stored numbers spread over many spectra. ``rounding_rtol`` is
the threshold that separates numbers from their rounding.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from orthotrain._checks import known, require_share
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, RankError
from orthotrain.linalg._inputs import (
    require_spectrum,
    result_dtype,
)
from orthotrain.linalg.decompose import working_dtype

# A tolerance beyond it would leave nothing but the largest value.
_MOST_RTOL: Final = 0.5


def rounding_rtol(
    a: Float[Tensor, "*batch m n"],
    *,
    eps: float | None = None,
    difference_from: Float[Tensor, "*shape"] | None = None,
) -> float:
    """Share of the largest singular value below which others may be rounding alone.

    ``max(m, n) * eps``, the usual bound; for a difference of weights at least
    ``difference_rtol``. At most .5.

    Args:
        a: ``(*batch, m, n)``. One share for the whole batch.
        eps: Relative precision of its entries. Defaults to the eps of the dtype of ``a``.
        difference_from: The weight from which ``a`` is a difference, in any shape.
    """
    share = max(a.shape[-2:]) * (torch.finfo(a.dtype).eps if eps is None else eps)
    if difference_from is not None:
        share = max(share, difference_rtol(a, difference_from))
    return min(share, _MOST_RTOL)


def difference_rtol(delta: Float[Tensor, "*batch m n"], weight: Float[Tensor, "*shape"]) -> float:
    """Share of the largest singular value of a difference that the rounding of weights can reach.

    ``eps * |weight|_F / |delta|_F`` with the eps of the weight; 0 for no difference, and beyond 1
    where rounding is all there is.

    An entry ``w`` is rounded by at most ``eps w / 2``, so the rounding of a matrix is like noise
    of standard deviation ``eps rms(w) / sqrt(12)``. Its spectral norm, ``sqrt(m) + sqrt(n)``
    times that, is at most ``.58 eps |weight|_F / sqrt(k)`` with ``k = min(m, n)``. The largest
    singular value of ``delta`` is at least ``|delta|_F / sqrt(k)``, so the share of it is above
    the noise whatever the spectrum, by 1.7 where that is flat.

    Args:
        delta: ``(*batch, m, n)``, finite. One share for the whole batch.
        weight: What it is a difference from, in any shape.
    """
    old, size = (
        float(torch.linalg.vector_norm(t, dtype=result_dtype(t.dtype))) for t in (weight, delta)
    )
    return torch.finfo(weight.dtype).eps * old / size if size > 0 else 0.0


@checked
def numerical_rank(
    s: Float[Tensor, "*batch k"],
    *,
    rtol: float | None = None,
    energy: float | None = None,
    total_energy: float | Tensor | None = None,
) -> Int64[Tensor, "*batch"]:
    """Number of leading singular values to keep, by a relative threshold or by energy.

    Exactly one of ``rtol`` and ``energy`` is given.

    Args:
        s: ``(*batch, k)`` with ``k >= 1``: singular values, non-negative and sorted from large
            to small along the last dimension. Batch entries are independent.
        rtol: In ``[0, 1)``. Keeps ``s_i >= rtol * s_0``, and no zeros; 0 keeps all ``k``,
            zeros too.
        energy: In ``(0, 1]``. Keeps the fewest values whose squares sum to at least ``energy``
            times the total. Where the total is out of reach, every non-zero value is kept.
        total_energy: What ``energy`` is a share of: a number, or a tensor of shape
            ``(*batch,)``. Defaults to the sum of ``s**2``. Give the energy before the first cut
            to keep repeated cuts from compounding.

    Returns:
        int64 of shape ``(*batch,)`` on the device of ``s``, in ``[0, k]``. A zero spectrum has
        rank 0, except with ``rtol=0``.

    Raises:
        ShapeError: ``s`` has no last dimension, or one of size zero.
        ConfigError: Both or neither rule given, a value outside its range, ``s`` negative, not
            sorted or not floating-point.
        NonFiniteError: ``s`` holds NaN or infinity.

    Note:
        Compared in float32 for float32 and below, in float64 for float64; energies are summed
        in the same precision. Piecewise constant, so there is no derivative.

    Source:
        Coquelin et al., arXiv:2401.08505 (the threshold); the energy rule is ours.

    Example:
        >>> s = torch.tensor([4.0, 2.0, 1.0, 0.0])
        >>> numerical_rank(s, rtol=0.25).item(), numerical_rank(s, energy=0.95).item()
        (3, 2)
    """
    require_spectrum("numerical_rank", s)
    s = s.detach().to(result_dtype(s.dtype))
    if known((s[..., 1:] > s[..., :-1]).any()):
        raise ConfigError(
            f"numerical_rank needs s sorted from large to small, got an unsorted spectrum of "
            f"shape {tuple(s.shape)}; sort it with s.sort(dim=-1, descending=True).values"
        )
    match (rtol, energy):
        case (float() | int(), None):
            if total_energy is not None:
                raise ConfigError(
                    "numerical_rank uses total_energy only with energy, got rtol and "
                    "total_energy; drop one of them"
                )
            return _rank_by_threshold(s, rtol)
        case (None, float() | int()):
            return _rank_by_energy(s, energy, total_energy)
        case _:
            raise ConfigError(
                f"numerical_rank needs exactly one of rtol and energy as a number, got "
                f"rtol={rtol}, energy={energy}; choose the rule and leave the other out"
            )


def _rank_by_threshold(s: Tensor, rtol: float) -> Tensor:
    require_share("numerical_rank", "rtol", rtol, zero=True)
    kept = s >= rtol * s[..., :1]
    if rtol > 0:
        kept &= s > 0
    return kept.sum(dim=-1)


def _rank_by_energy(s: Tensor, energy: float, total_energy: float | Tensor | None) -> Tensor:
    require_share("numerical_rank", "energy", energy, one=True)
    largest = s[..., :1]
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    # Relative to the largest value, so that squares of large or small spectra stay finite.
    reached = (s / unit).square().cumsum(dim=-1)
    target = energy * (reached[..., -1:] if total_energy is None else _total(s, total_energy, unit))
    rank = (reached < target).sum(dim=-1) + 1
    return torch.minimum(rank, (s > 0).sum(dim=-1))


def _total(s: Tensor, total_energy: float | Tensor, unit: Tensor) -> Tensor:
    """``total_energy`` as ``(*batch, 1)`` in units of the largest value squared."""
    if isinstance(total_energy, Tensor):
        total = total_energy.detach().to(s)
    else:
        total = torch.full((), total_energy, dtype=s.dtype, device=s.device)
    if total.ndim > 0 and total.shape != s.shape[:-1]:
        raise ConfigError(
            f"numerical_rank needs total_energy as a number or of shape {tuple(s.shape[:-1])}, "
            f"got shape {tuple(total.shape)}; give one total per spectrum"
        )
    if not bool((torch.isfinite(total) & (total >= 0)).all()):
        raise ConfigError(
            "numerical_rank needs finite, non-negative total_energy, got a negative, NaN or "
            "infinite one; pass the sum of squared singular values"
        )
    return total.unsqueeze(-1) / unit / unit


@checked
def ranks_within_budget(
    spectra: Sequence[Float[Tensor, " _"]],
    *,
    costs: Sequence[Callable[[int], int]],
    budget: int,
    min_ranks: Sequence[int],
    weights: Sequence[float] | None = None,
) -> list[int]:
    """Ranks of several matrices that fit one budget of stored numbers and lose little energy.

    All start at full rank. The cut that loses least energy per stored number saved goes first,
    until the costs fit. Energy counts relative to the total of its matrix. Where a small cut saves
    nothing (a layer that stays dense above its break-even), the cut is deep enough to pay.

    Args:
        spectra: One ``(k_i,)`` per matrix, sorted from large to small; lengths may differ.
        costs: ``costs[i](r)`` is the count of stored numbers of matrix ``i`` at rank ``r``. It
            must not fall as ``r`` grows.
        budget: The largest allowed sum of costs.
        min_ranks: The smallest allowed rank of each matrix, in ``[1, k_i]``.
        weights: What the whole energy of each matrix counts beside the others; 1 each by
            default. With its sum of squares, absolute energies are compared.

    Returns:
        One rank per matrix, in the order given. Equal input gives equal ranks: ties go to the
        matrix that comes first.

    Raises:
        RankError: A minimum rank outside ``[1, k_i]``, or a budget below what the minimum
            ranks cost.
        ConfigError: Lists of different lengths, a cost that falls as the rank grows, or a
            weight that is negative or not finite.
        ShapeError: A spectrum that is not of shape ``(k,)`` with ``k >= 1``.
        NonFiniteError: A spectrum with NaN or infinity.

    Note:
        Greedy on the lower convex hull of (saved, lost): optimal up to the last cut when no
        partial cut lands on the budget. No derivative.

    Example:
        >>> flat, steep = torch.ones(4), torch.tensor([1.0, 0.1, 0.1, 0.1])
        >>> ranks_within_budget(
        ...     [flat, steep], costs=[lambda r: 8 * r] * 2, budget=40, min_ranks=[1, 1]
        ... )
        [4, 1]
    """
    weights = [1.0] * len(spectra) if weights is None else weights
    _require_equal_lengths(spectra, costs, min_ranks, weights)
    tables = [
        _CutTable(index, *each)
        for index, each in enumerate(zip(spectra, costs, min_ranks, weights, strict=True))
    ]
    smallest = sum(table.cost[table.min_rank] for table in tables)
    if smallest > budget:
        raise RankError(
            f"ranks_within_budget needs a budget of at least {smallest} stored numbers for the "
            f"minimum ranks, got {budget}; raise the budget or lower min_ranks"
        )
    excess = sum(table.cost[table.rank] for table in tables) - budget
    queue = [(table.slope(), table.index) for table in tables if table.has_cut()]
    heapq.heapify(queue)
    while excess > 0:
        _, index = heapq.heappop(queue)
        table = tables[index]
        excess -= table.cut(excess)
        if table.has_cut():
            heapq.heappush(queue, (table.slope(), index))
    return [table.rank for table in tables]


def _require_equal_lengths(
    spectra: Sequence[Tensor],
    costs: Sequence[Callable[[int], int]],
    min_ranks: Sequence[int],
    weights: Sequence[float],
) -> None:
    if not len(spectra) == len(costs) == len(min_ranks) == len(weights):
        raise ConfigError(
            f"ranks_within_budget needs one cost, one minimum rank and one weight per spectrum, "
            f"got {len(spectra)} spectra, {len(costs)} costs, {len(min_ranks)} min_ranks and "
            f"{len(weights)} weights"
        )


class _CutTable:
    """Costs and lost energies of one matrix at every rank, and where its next cuts lead."""

    def __init__(
        self, index: int, s: Tensor, cost: Callable[[int], int], min_rank: int, weight: float
    ) -> None:
        name = f"spectra[{index}]"
        require_spectrum("ranks_within_budget", s, name=name)
        values = s.detach().to("cpu").to(torch.float64).tolist()
        if s.ndim != 1 or any(a < b for a, b in pairwise(values)):
            raise ConfigError(
                f"ranks_within_budget needs each spectrum of shape (k,) and sorted from large to "
                f"small, got {name} of shape {tuple(s.shape)}; pass one matrix at a time"
            )
        if not 1 <= min_rank <= len(values):
            raise RankError(
                f"ranks_within_budget needs min_ranks[{index}] in [1, {len(values)}], got "
                f"{min_rank}"
            )
        self.index = index
        self.min_rank = min_rank
        self.rank = len(values)
        self.cost = [cost(rank) for rank in range(len(values) + 1)]
        if any(a > b for a, b in pairwise(self.cost)):
            raise ConfigError(
                f"ranks_within_budget needs costs that do not fall as the rank grows, got "
                f"costs[{index}], which falls; cap a factored cost at the dense one"
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(
                f"ranks_within_budget needs weights that are finite and not negative, got "
                f"weights[{index}] = {weight}"
            )
        self.lost = [weight * share for share in _lost_shares(values)]
        self._targets = self._hull()

    def _hull(self) -> list[int]:
        """Ranks on the lower convex hull of (saved, lost), the next one last."""
        hull = [self.rank]
        for rank in range(self.rank - 1, self.min_rank - 1, -1):
            if self.cost[rank] == self.cost[hull[-1]]:
                continue
            while len(hull) > 1 and self._slope(hull[-1], rank) <= self._slope(hull[-2], hull[-1]):
                hull.pop()
            hull.append(rank)
        return hull[:0:-1]

    def _slope(self, high: int, low: int) -> float:
        return (self.lost[low] - self.lost[high]) / (self.cost[high] - self.cost[low])

    def has_cut(self) -> bool:
        return bool(self._targets)

    def slope(self) -> float:
        """Weighted energy share lost per stored number saved by the next cut."""
        return self._slope(self.rank, self._targets[-1])

    def cut(self, excess: int) -> int:
        """Go to the next hull rank, or stop early where ``excess`` is already saved."""
        before = self.cost[self.rank]
        target = self._targets.pop()
        enough = (r for r in range(self.rank - 1, target, -1) if before - self.cost[r] >= excess)
        self.rank = next(enough, target)
        return before - self.cost[self.rank]


def _lost_shares(values: list[float]) -> list[float]:
    """Share of the total energy lost at each rank from 0 to k; zeros for a zero spectrum."""
    largest = values[0]
    if largest == 0:
        return [0.0] * (len(values) + 1)
    squares = [(value / largest) ** 2 for value in values]
    total = math.fsum(squares)
    lost = [0.0]
    # From the smallest upwards, so that small tails are not rounded away.
    for square in reversed(squares):
        lost.append(lost[-1] + square / total)
    return lost[::-1]


@checked
def effective_rank(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """Exponential of the entropy of the normalized singular values: a rank without a threshold.

    ``exp(-sum_i p_i log p_i)`` with ``p = s / sum(s)``: ``k`` for a flat spectrum, 1 where one
    direction holds everything, and not changed by scale.

    Args:
        s: ``(*batch, k)`` with ``k >= 1``: non-negative singular values, in any order. Batch
            entries are independent.

    Returns:
        ``(*batch,)`` in [1, k], or 0 for a zero spectrum; in float64 for float64 input and else
        in float32.

    Raises:
        ShapeError: ``s`` has no last dimension, or one of size zero.
        ConfigError: ``s`` is negative or not real floating-point.
        NonFiniteError: ``s`` holds NaN or infinity.

    Note:
        Differentiable where all ``s_i > 0``. At ``s_i = 0`` the one-sided derivative is
        infinite; zero is returned for it.

    Source:
        Roy and Vetterli (2007), "The effective rank: a measure of effective dimensionality",
        EUSIPCO.

    Example:
        >>> effective_rank(torch.tensor([[2.0, 2.0, 2.0], [5.0, 0.0, 0.0]])).tolist()
        [3.0, 1.0]
    """
    require_spectrum("effective_rank", s)
    work = s.to(working_dtype(s))
    # The largest first, so that the sum of large values stays finite.
    largest = work.detach().amax(dim=-1, keepdim=True)
    unit = work / torch.where(largest > 0, largest, 1.0)
    total = unit.sum(dim=-1, keepdim=True)
    p = unit / torch.where(total > 0, total, 1.0)
    positive = p > 0
    entropy = -(p * torch.where(positive, p, 1.0).log()).sum(dim=-1)
    rank = torch.where(positive.any(dim=-1), entropy.exp(), 0.0)
    return rank.to(result_dtype(s.dtype))
