"""Adaptive low-rank training (OIALR) as a method of ``attach``: its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from orthotrain.errors import ConfigError
from orthotrain.lowrank.policy import POINTS_TO_SETTLE, Limits, RankRule, require, require_share
from orthotrain.lowrank.sites import Selection, find_sites, require_sites
from orthotrain.lowrank.training import LowRankTraining
from orthotrain.methods import Bound, Method, Phase, Run
from orthotrain.methods.optimizer_state import StateMode


@dataclass(frozen=True, kw_only=True)
class AdaptiveLowRank(Method):
    """Orthogonality-informed adaptive low-rank training (OIALR).

    The network starts dense. Once the orthogonal basis of its weights has settled, each weight
    becomes ``u @ core @ vh`` with ``u`` and ``vh`` frozen, and only the small ``core`` is
    trained. At every update the core's own singular bases are folded into ``u`` and ``vh``, and
    what is small is cut. Steps are optimizer steps: gradient accumulation, evaluation and steps
    that ``GradScaler`` skips do not move the schedule.

    Args:
        delay_steps: Dense steps before the switch; 0 switches when attached. ``"auto"`` lets
            each layer switch by itself once its basis stability, checked at every update, has
            stopped rising; until then it keeps one float32 copy of each layer's basis.
        every_steps: Steps between updates, at least one.
        rank_rtol: Drop singular values below this share of the largest, in ``[0, 1)``: the
            paper's beta. 0 keeps all.
        energy: Instead, keep this share of a layer's energy, in ``(0, 1]``, in each of its
            blocks. What was cut before counts as lost, so repeated cuts do not compound.
        stored_budget: Instead, cut until the whole model stores this share of the dense one's
            numbers, in ``(0, 1]``, where it loses least energy.
        layer_fraction: Each update reaches this much further from the last layer to the first,
            in ``(0, 1]``: the paper's alpha. ``"auto"`` reaches each layer once it has settled.
        max_drop: At most this share of a rank goes in one update, in ``(0, 1]``.
        min_rank_fraction: Never below this share of the full rank, in ``[0, 1)``.
        dense_first: Keep the first layer dense, by position in the model.
        dense_last: Keep the last one dense.
        skip: ``fnmatch`` patterns on qualified module names to leave alone. Each must match a
            module with a weight of its own: a block is skipped with ``"block.*"``.
        only_if_cheaper: A layer whose rank does not pay yet stays dense: its planned rank falls
            with every update that reaches it, and it is converted when the factored form takes
            fewer multiply-adds. False converts every eligible layer at the switch.
        optimizer_state: How optimizer state follows: ``"rotate"`` into the new coordinates,
            ``"slice"`` without rotating, or ``"reset"``.
        shared_attention_basis: One basis for query, key and value of packed attention, instead
            of one each.

    Raises:
        ConfigError: A setting outside its range, or ``energy`` and ``stored_budget`` together.

    Source:
        Coquelin et al., arXiv:2401.08505. Ours: ``"auto"``, the energy and budget rules, lazy
        conversion, rotated optimizer state, and the guard that delays a layer's next cut after
        one that made the training loss jump (show it losses with ``handle.observe(loss)``
        where the model's output does not carry one).
    """

    delay_steps: int | Literal["auto"]
    every_steps: int
    rank_rtol: float = 0.1
    energy: float | None = None
    stored_budget: float | None = None
    layer_fraction: float = 0.1
    max_drop: float = 0.5
    min_rank_fraction: float = 0.01
    dense_first: bool = False
    dense_last: bool = True
    skip: Sequence[str] = ()
    only_if_cheaper: bool = True
    optimizer_state: StateMode = "rotate"
    shared_attention_basis: bool = False

    phase: ClassVar[Phase] = Phase.STRUCTURE
    name: ClassVar[str] = "adaptive_low_rank"

    def __post_init__(self) -> None:
        delay, every = self.delay_steps, self.every_steps
        if isinstance(delay, str):
            require(delay == "auto", "delay_steps", delay, 'a step count or "auto"')
        else:
            require(_is_count(delay, least=0), "delay_steps", delay, "a step count of 0 or more")
        require(_is_count(every, least=1), "every_steps", every, "a step count of 1 or more")
        require_share("layer_fraction", self.layer_fraction, one=True)
        modes = get_args(StateMode)
        require(self.optimizer_state in modes, "optimizer_state", self.optimizer_state, modes)
        require(not isinstance(self.skip, str), "skip", self.skip, "a sequence of patterns")
        object.__setattr__(self, "skip", tuple(self.skip))  # a list could change afterwards
        _ = self.rule, self.limits  # these check the settings they are made of

    @property
    def rule(self) -> RankRule:
        """How ranks follow from spectra."""
        return RankRule(self.rank_rtol, self.energy, self.stored_budget)

    @property
    def limits(self) -> Limits:
        """Guards on every cut."""
        return Limits(self.max_drop, self.min_rank_fraction)

    @property
    def first_switch(self) -> int:
        """Steps before the earliest switch there can be."""
        if self.delay_steps == "auto":
            return (POINTS_TO_SETTLE + 1) * self.every_steps  # the first check has no point yet
        return self.delay_steps

    def bind(self, run: Run) -> Bound:
        """Find the layers and check the schedule; with ``delay_steps=0``, switch.

        Raises:
            ConfigError: No eligible layer, a skip pattern that matches nothing, a switch that
                lies at or beyond the run's last step, or an optimizer that cannot train cores.
        """
        total, first = run.total_steps, self.first_switch
        if total is not None and first >= total:
            raise ConfigError(
                f"AdaptiveLowRank with delay_steps={self.delay_steps!r} and every_steps="
                f"{self.every_steps} switches after step {first} at the earliest, the run has "
                f"{total} steps; lower them"
            )
        selection = Selection(
            skip=self.skip, dense_first=self.dense_first, dense_last=self.dense_last,
            shared_attention_basis=self.shared_attention_basis,
        )  # fmt: skip
        trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
        sites, refusals = find_sites(run.model, selection, trained=trained)
        require_sites(sites, refusals, "AdaptiveLowRank")
        return LowRankTraining(self, run, sites, refusals)


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
