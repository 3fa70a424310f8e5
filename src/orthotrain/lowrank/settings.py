"""The settings of adaptive low-rank training, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from functools import cached_property
from typing import Literal, get_args

from orthotrain._checks import require_steps
from orthotrain.layers import Bases
from orthotrain.lowrank.history import POINTS_TO_SETTLE
from orthotrain.lowrank.rank_rule import Limits, RankRule, require, require_bases, require_share
from orthotrain.lowrank.rules import DEFAULT_RULE, chosen_rule
from orthotrain.methods.optimizer_state import StateMode


@dataclass(frozen=True, kw_only=True)
class LowRankSettings:
    """What ``AdaptiveLowRank`` is told; its docstring describes each of them."""

    delay_steps: int | Literal["auto"]
    every_steps: int
    rank: RankRule = DEFAULT_RULE
    rank_rtol: InitVar[float | None] = None
    energy: InitVar[float | None] = None
    stored_budget: InitVar[float | None] = None
    bases: Bases = "frozen"
    layer_fraction: float = 0.1
    max_drop: float = 0.5
    min_rank_fraction: float = 0.01
    dense_first: bool = False
    dense_last: bool = True
    skip: Sequence[str] = ()
    only_if_cheaper: bool = True
    optimizer_state: StateMode = "rotate"
    shared_attention_basis: bool = False

    def __post_init__(
        self, rank_rtol: float | None, energy: float | None, stored_budget: float | None
    ) -> None:
        short_forms = {"rank_rtol": rank_rtol, "energy": energy, "stored_budget": stored_budget}
        by_default = self.rank is DEFAULT_RULE and any(v is not None for v in short_forms.values())
        rule = chosen_rule(None if by_default else self.rank, **short_forms)
        object.__setattr__(self, "rank", rule)
        delay, every = self.delay_steps, self.every_steps
        if isinstance(delay, str):
            require(delay == "auto", "delay_steps", delay, 'a step count or "auto"')
        else:
            require_steps("AdaptiveLowRank", "delay_steps", delay, least=0)
        require_steps("AdaptiveLowRank", "every_steps", every)
        require_share("layer_fraction", self.layer_fraction, one=True)
        modes = get_args(StateMode)
        require(self.optimizer_state in modes, "optimizer_state", self.optimizer_state, modes)
        require_bases(self.bases)
        if self.bases == "trained":
            mode = self.optimizer_state
            needed = '"rotate" or "reset" where bases="trained": a pair has no leading block'
            require(mode != "slice", "optimizer_state", mode, needed)
        require(not isinstance(self.skip, str), "skip", self.skip, "a sequence of patterns")
        object.__setattr__(self, "skip", tuple(self.skip))  # a list could change afterwards
        _ = self.limits  # checks what it is made of

    @cached_property
    def limits(self) -> Limits:
        """Guards on every cut."""
        return Limits(self.max_drop, self.min_rank_fraction)

    @property
    def first_switch(self) -> int:
        """Steps before the earliest switch there can be."""
        if self.delay_steps == "auto":
            return (POINTS_TO_SETTLE + 1) * self.every_steps  # the first check has no point yet
        return self.delay_steps
