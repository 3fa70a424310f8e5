"""Spectra and history in, rank decisions out: the schedule of OIALR without any module.

Source: Coquelin et al., arXiv:2401.08505. What goes beyond it is said where it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from orthotrain.errors import ConfigError
from orthotrain.layers import break_even_fraction, stored_numbers
from orthotrain.linalg import numerical_rank, ranks_within_budget

# The published mean curve of a ViT-B/16 (five epochs between points) rises by less than this
# over two intervals from epoch 60 of 100 on; a noisy layer needs three points to show a trend.
_SETTLED_RISE = 0.02
POINTS_TO_SETTLE = 3

# With ten losses before and after, noise alone exceeds this many standard errors once in a
# thousand cuts (Student's t, 9 degrees of freedom), with five once in a hundred and fifty;
# fewer give no standard error worth the name.
_JUMP_LOSSES = 10
_JUMP_ERRORS = 4.3
_JUMP_MIN_LOSSES = 5

# Shares such as 0.7 of 10 must not round up because 1 - 0.7 is a little more than 0.3.
_ROUNDING = 1e-9


def require(holds: bool, name: str, value: object, needed: object) -> None:
    """Refuse a setting.

    Raises:
        ConfigError: ``holds`` is false; the message says what was given and what is needed.
    """
    if not holds:
        raise ConfigError(f"low-rank training needs {name} to be {needed}, got {value!r}")


def require_share(name: str, value: object, *, zero: bool = False, one: bool = False) -> None:
    """Refuse a setting that is no number from 0 to 1, the ends included where they are named.

    Raises:
        ConfigError: Another number, or none, such as the string that YAML makes of ``1e-1``.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    holds = 0 < number < 1 or (zero and number == 0) or (one and number == 1)
    interval = ("[" if zero else "(") + "0, 1" + ("]" if one else ")")
    require(holds, name, value, f"a share in {interval}")


@dataclass(frozen=True)
class RankRule:
    """How a rank follows from a spectrum: exactly one of the three is used.

    Attributes:
        rank_rtol: Drop singular values below ``rank_rtol`` times the largest.
        energy: Keep this share of the energy of each block. Cut energy counts as lost for good,
            so repeated cuts do not compound: the share is of what is there and what was cut,
            together.
        stored_budget: Stored numbers of the whole model, as a share of the dense model's.

    Raises:
        ConfigError: A value outside its range, or ``energy`` and ``stored_budget`` together.
    """

    rank_rtol: float = 0.1
    energy: float | None = None
    stored_budget: float | None = None

    def __post_init__(self) -> None:
        require_share("rank_rtol", self.rank_rtol, zero=True)
        for name in ("energy", "stored_budget"):
            if (value := getattr(self, name)) is not None:
                require_share(name, value, one=True)
        if self.energy is not None and self.stored_budget is not None:
            raise ConfigError(
                f"low-rank training needs one rank rule, got energy={self.energy} and "
                f"stored_budget={self.stored_budget}; choose one"
            )


@dataclass(frozen=True)
class Candidate:
    """What the policy knows of one layer at an update.

    Attributes:
        spectrum: ``(blocks, r)`` singular values of the core, or of the dense weight.
        cut_energy: Of each block, the sum of squares of all singular values cut so far; empty
            where nothing was cut.
        ceiling: The rank it must not exceed: its rank, or what was planned while it is dense.
        m: Rows of a block.
        n: Columns of a block.
        may_stay_dense: Whether it holds its dense weight and may keep it where that is cheaper.
        within_reach: Whether this update may change it.
        multiple: The rank is rounded up to a multiple of this.
    """

    spectrum: Tensor
    cut_energy: Sequence[float]
    ceiling: int
    m: int
    n: int
    may_stay_dense: bool
    within_reach: bool
    multiple: int = 1

    @property
    def full_rank(self) -> int:
        """The largest rank a block can have."""
        return min(self.m, self.n)

    @property
    def blocks(self) -> int:
        """Number of blocks that share one rank."""
        return self.spectrum.shape[0]

    def rounded(self, rank: int) -> int:
        """A rank rounded up to what the hardware likes, but not above the ceiling."""
        return min(math.ceil(rank / self.multiple) * self.multiple, self.ceiling)


@dataclass(frozen=True)
class Limits:
    """Guards on every cut.

    Attributes:
        max_drop: At most this share of the rank goes in one update.
        min_rank_fraction: Never below this share of the full rank, and never below one.

    Raises:
        ConfigError: A value outside its range.
    """

    max_drop: float = 0.5
    min_rank_fraction: float = 0.01

    def __post_init__(self) -> None:
        require_share("max_drop", self.max_drop, one=True)
        require_share("min_rank_fraction", self.min_rank_fraction, zero=True)

    def floor(self, full_rank: int) -> int:
        """The smallest rank allowed."""
        return max(1, int(self.min_rank_fraction * full_rank))


def decided_ranks(
    candidates: Sequence[Candidate], *, rule: RankRule, limits: Limits, other_numbers: int = 0
) -> list[int]:
    """The rank of each candidate after this update; its ceiling where it is out of reach.

    Args:
        candidates: In any order; the decision for one depends on others only under a budget.
        rule: How ranks follow from spectra.
        limits: Guards on every cut.
        other_numbers: Stored numbers of the model outside the candidates, for the budget.
    """
    if rule.stored_budget is None:
        targets = [_target(candidate, rule) for candidate in candidates]
    else:
        targets = _budget_targets(candidates, rule.stored_budget, limits, other_numbers)
    return [
        _limited(target, candidate, limits) if candidate.within_reach else candidate.ceiling
        for target, candidate in zip(targets, candidates, strict=True)
    ]


def factored_pays(m: int, n: int, rank: int) -> bool:
    """Whether a factored layer of this rank trains in fewer multiply-adds than a dense one."""
    return rank <= break_even_fraction(m, n) * min(m, n)


def tail_length(update: int, *, layers: int, layer_fraction: float) -> int:
    """How many of the last layers the ``update``-th update (from one) reaches."""
    return min(layers, update * max(1, int(layer_fraction * (layers - 1))))


def updates_to_reach_all(*, layers: int, layer_fraction: float) -> int:
    """The first update that reaches every layer."""
    return math.ceil(layers / max(1, int(layer_fraction * (layers - 1))))


def has_settled(stability: Sequence[float]) -> bool:
    """Whether a layer's basis stability, point by point, has stopped rising.

    Over the last three points it must not fall, and must rise by less than 0.02. A basis that
    still turns away from where it was falls; one that settles rises first and flattens then.
    """
    if len(stability) < POINTS_TO_SETTLE:
        return False
    rise = stability[-1] - stability[-POINTS_TO_SETTLE]
    return 0.0 <= rise < _SETTLED_RISE


def loss_jumped(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the losses after a cut lie above those before it by more than their noise.

    Over 4.3 standard errors of the difference of the two means, from the spread before the cut;
    a loss that is not finite is a jump. With fewer than five losses on a side there is no
    verdict.
    """
    if any(not math.isfinite(loss) for loss in after):
        return True
    before, after = before[-_JUMP_LOSSES:], after[:_JUMP_LOSSES]
    if min(len(before), len(after)) < _JUMP_MIN_LOSSES:
        return False
    spread = torch.tensor(before, dtype=torch.float64).std().item()
    error = spread * math.sqrt(1 / len(before) + 1 / len(after))
    return sum(after) / len(after) - sum(before) / len(before) > _JUMP_ERRORS * error


def verdict_is_due(after: Sequence[float]) -> bool:
    """Whether enough losses were seen since a cut to judge it."""
    return len(after) >= _JUMP_LOSSES


def kept_before(losses: Sequence[float]) -> list[float]:
    """The part of the loss history that a later verdict needs."""
    return list(losses[-_JUMP_LOSSES:])


def _target(candidate: Candidate, rule: RankRule) -> int:
    """The rank the rule asks for; blocks share one rank, so the largest."""
    s = candidate.spectrum
    if rule.energy is None:
        ranks = numerical_rank(s, rtol=rule.rank_rtol)
    else:
        total = s.double().square().sum(-1)
        if candidate.cut_energy:
            total = total + total.new_tensor(candidate.cut_energy)
        ranks = numerical_rank(s.double(), energy=rule.energy, total_energy=total)
    return max(1, int(ranks.max()))


def _limited(target: int, candidate: Candidate, limits: Limits) -> int:
    """The target within the guards, rounded up to what the hardware likes."""
    slowest = math.ceil(candidate.ceiling * (1 - limits.max_drop) - _ROUNDING)
    return candidate.rounded(max(target, slowest, limits.floor(candidate.full_rank)))


def _budget_targets(
    candidates: Sequence[Candidate], stored_budget: float, limits: Limits, other_numbers: int
) -> list[int]:
    """Ranks that together keep most energy within the budget."""
    dense = sum(c.blocks * c.m * c.n for c in candidates)
    budget = int(stored_budget * (dense + other_numbers)) - other_numbers
    floors = [min(limits.floor(c.full_rank), c.spectrum.shape[-1]) for c in candidates]
    costs = [_stored_cost(c) for c in candidates]
    smallest = sum(cost(floor) for cost, floor in zip(costs, floors, strict=True))
    if smallest > budget:
        raise ConfigError(
            f"stored_budget={stored_budget} leaves {budget:,} numbers for the low-rank layers, "
            f"but at their smallest ranks they hold {smallest:,}, beside {other_numbers:,} in "
            "the rest of the model; raise stored_budget or skip fewer layers"
        )
    spectra = [c.spectrum.double().square().sum(0).sqrt() for c in candidates]
    return ranks_within_budget(spectra, costs=costs, budget=budget, min_ranks=floors)


def _stored_cost(candidate: Candidate) -> Callable[[int], int]:
    """Stored numbers of a candidate as a function of rank; it may stay dense until that pays.

    Counted at the rank it is rounded up to: that is what is stored.
    """

    def cost(rank: int) -> int:
        dense = candidate.m * candidate.n
        factored = stored_numbers(candidate.m, candidate.n, candidate.rounded(rank))
        return candidate.blocks * (min(dense, factored) if candidate.may_stay_dense else factored)

    return cost
