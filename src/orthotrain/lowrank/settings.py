"""The settings of adaptive low-rank training, checked."""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import InitVar, dataclass
from functools import cached_property
from typing import Final, Literal

from orthotrain._checks import require_count, require_number, require_share, require_steps
from orthotrain.errors import ConfigError
from orthotrain.layers import Bases
from orthotrain.lowrank.no_form import Kind
from orthotrain.lowrank.rank_rule import Limits, RankRule, require
from orthotrain.lowrank.rules import DEFAULT_RULE, chosen_rule
from orthotrain.lowrank.schedule import WATCHED_STEPS, Schedule, schedule_of
from orthotrain.methods.optimizer_state import StateMode

#: What ranks are chosen by: the loss, the inputs of each layer, or its singular values.
Importance = Literal["loss", "input", "weight"]
# Published: a weight is eligible where its smaller side exceeds a tenth of the larger.
MAX_ASPECT: Final = 10.0


def require_aspect(what: str, value: float) -> None:
    """Raise ConfigError unless ``value`` can be a ``max_aspect``; infinity takes every shape."""
    if not value > 1:
        raise ConfigError(
            f"{what} needs max_aspect to be a number above 1, math.inf for every shape, got "
            f"{value!r}"
        )


@dataclass(frozen=True, kw_only=True)
class LowRankSettings:
    """What ``AdaptiveLowRank`` is told; its docstring describes each of them."""

    delay_steps: int | float | Literal["auto"] = 0.5
    every_steps: int | float | Literal["auto"] = "auto"
    rank: RankRule = DEFAULT_RULE
    rank_rtol: InitVar[float | None] = None
    energy: InitVar[float | None] = None
    stored_budget: InitVar[float | None] = None
    importance: Importance = "loss"
    bases: Bases = "trained"
    layer_fraction: float = 1.0
    max_drop: float = 1.0
    min_rank_fraction: float = 0.01
    dense_first: bool = False
    dense_last: bool = True
    only: Collection[str] = ()
    skip: Collection[str] = ()
    also: Collection[Kind] = ()
    max_aspect: float = MAX_ASPECT
    only_if_cheaper: bool = True
    optimizer_state: StateMode = "rotate"
    spread: bool = True
    rank_multiple: int | Literal["auto"] = "auto"
    factor_step: float = 1.0
    core_step: float | Literal["auto"] = "auto"
    shared_attention_basis: bool = False

    def __post_init__(
        self, rank_rtol: float | None, energy: float | None, stored_budget: float | None
    ) -> None:
        short_forms = {"rank_rtol": rank_rtol, "energy": energy, "stored_budget": stored_budget}
        by_default = self.rank is DEFAULT_RULE and any(v is not None for v in short_forms.values())
        rule = chosen_rule(None if by_default else self.rank, **short_forms)
        object.__setattr__(self, "rank", rule)
        for name, least in (("delay_steps", 0), ("every_steps", 1)):
            value = getattr(self, name)
            if isinstance(value, float):
                require_share("AdaptiveLowRank", name, value, one=True)
            elif value != "auto":
                require_steps("AdaptiveLowRank", name, value, least=least)
        require_share("AdaptiveLowRank", "layer_fraction", self.layer_fraction, one=True)
        if self.bases == "trained":
            mode = self.optimizer_state
            needed = '"rotate" or "reset" where bases="trained": a pair has no leading block'
            require(mode != "slice", "optimizer_state", mode, needed)
        # A list could change, a set differs between processes.
        for name in ("only", "skip", "also"):
            patterns = getattr(self, name)
            kept = tuple(sorted(patterns) if isinstance(patterns, Set) else patterns)
            object.__setattr__(self, name, kept)
        require_aspect("AdaptiveLowRank", self.max_aspect)
        if self.rank_multiple != "auto":
            require_count("AdaptiveLowRank", "rank_multiple", self.rank_multiple)
        for name in ("factor_step", "core_step"):
            if getattr(self, name) != "auto":
                require_number("AdaptiveLowRank", name, getattr(self, name), above=0)
        _ = self.limits  # checks what it is made of

    @cached_property
    def limits(self) -> Limits:
        """Guards on every cut."""
        return Limits(self.max_drop, self.min_rank_fraction)

    def schedule(self, total_steps: int | None) -> Schedule:
        """When updates are due in a run of this length."""
        return schedule_of(
            self.delay_steps, self.every_steps, total_steps=total_steps,
            window=0 if self.importance == "weight" else WATCHED_STEPS,
            one_cut=self.rank.one_cut and self.layer_fraction == 1 and self.max_drop == 1,
        )  # fmt: skip
