"""What a rank rule is: it sees singular values and says which ranks layers get, within limits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from orthotrain._checks import require_share
from orthotrain._doors import checked
from orthotrain.errors import ConfigError
from orthotrain.layers import Bases


@checked
@dataclass(frozen=True)
class Candidate:
    """What a rank rule knows of one layer at an update.

    Attributes:
        spectrum: ``(blocks, r)`` singular values of the core, or of the dense weight, sorted
            from large to small; with data, in the metric of the layer's inputs or of the loss.
            All blocks get the same rank.
        cut_energy: For each block, the sum of squares of all singular values cut so far; empty
            where nothing was cut.
        ceiling: The rank it must not exceed: its rank, or the planned rank while it is dense.
        m: Rows of a block.
        n: Columns of a block.
        may_stay_dense: Whether it holds its dense weight and may keep it where that is cheaper.
        within_reach: Whether this update may change it.
        multiple: The rank is rounded up to a multiple of this.
        bases: Whether its factors are, or will be, both trained; they hold fewer numbers then.
        weight: What losing all of its energy counts beside other layers: the estimated increase
            of the loss up to a common factor, or 1 where only shares of energy are known.
        name: Its name, for messages.
    """

    spectrum: Float[Tensor, "blocks r"]
    cut_energy: Sequence[float]
    ceiling: int
    m: int
    n: int
    may_stay_dense: bool
    within_reach: bool
    multiple: int = 1
    bases: Bases = "frozen"
    weight: float = 1.0
    name: str = ""

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

    def next_below(self) -> int:
        """The largest multiple below the ceiling."""
        return (self.ceiling - 1) // self.multiple * self.multiple


class RankRule(ABC):
    """Base of every rank rule: subclasses are frozen dataclasses that hold settings only.

    A rule for each layer by itself derives from :class:`LayerRule`. ``docs/rank_rule.md``
    writes one.

    Attributes:
        sees_all_layers: Whether a decision needs the spectra of all layers. Otherwise the rule
            sees those that the update may change.
        one_cut: Whether one update is enough: a later one would find nothing to cut.
    """

    sees_all_layers: ClassVar[bool] = True
    one_cut: ClassVar[bool] = False
    # Whoever takes a rule takes its short forms, too, and says what is wrong with all of them.
    checked_by_taker: ClassVar[bool] = True

    @abstractmethod
    def ranks(
        self, layers: Sequence[Candidate], *, min_ranks: Sequence[int], other_numbers: int
    ) -> list[int]:
        """The rank that each layer should get, before the guards on a cut.

        Args:
            layers: In model order.
            min_ranks: The smallest rank each layer may get.
            other_numbers: Stored numbers of the model outside these layers; 0 where the rule
                does not see all layers.
        """

    def require_reachable(  # noqa: B027  # most rules can always be met
        self, layers: Sequence[Candidate], *, min_ranks: Sequence[int], other_numbers: int
    ) -> None:
        """Refuse what no rank can reach; told at ``attach``, from shapes alone.

        Args:
            layers: In model order. Their spectra say nothing but their size.
            min_ranks: The smallest rank each layer may get.
            other_numbers: Stored numbers of the model outside these layers.

        Raises:
            ConfigError: Even the smallest ranks exceed what the rule allows.
        """

    def promise(self, numbers: int, *, stored: int) -> str:
        """What can be said of the size before anything was seen, one line; empty for nothing.

        Args:
            numbers: In the dense model.
            stored: Numbers that the model holds now.
        """
        return ""


class LayerRule(RankRule):
    """A rule that decides each layer by its own spectrum."""

    sees_all_layers: ClassVar[bool] = False

    @abstractmethod
    def rank(self, layer: Candidate) -> int:
        """The rank that this layer should get, before the guards on a cut.

        The guards keep it between one and the rank that the layer has.
        """

    def ranks(
        self, layers: Sequence[Candidate], *, min_ranks: Sequence[int], other_numbers: int
    ) -> list[int]:
        """What ``rank`` says of each layer."""
        return [self.rank(layer) for layer in layers]


@dataclass(frozen=True)
class Limits:
    """Guards on every cut.

    Attributes:
        max_drop: One update drops at most this share of the rank.
        min_rank_fraction: The rank never falls below this share of the full rank, nor below one.

    Raises:
        ConfigError: A value outside its range.
    """

    max_drop: float = 0.5
    min_rank_fraction: float = 0.01

    def __post_init__(self) -> None:
        require_share("AdaptiveLowRank", "max_drop", self.max_drop, one=True)
        require_share("AdaptiveLowRank", "min_rank_fraction", self.min_rank_fraction, zero=True)

    def floor(self, full_rank: int) -> int:
        """The smallest rank allowed."""
        return max(1, int(self.min_rank_fraction * full_rank))


def require(holds: bool, name: str, value: object, needed: object) -> None:
    """Refuse a setting.

    Raises:
        ConfigError: ``holds`` is false; the message says what was given and what is needed.
    """
    if not holds:
        raise ConfigError(f"{name} must be {needed}, got {value!r}")
