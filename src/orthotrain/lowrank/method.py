"""Adaptive low-rank training (OIALR) as a method of ``attach``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from orthotrain.errors import ConfigError
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.lowrank.sites import Selection, find_sites, require_sites
from orthotrain.lowrank.training import LowRankTraining
from orthotrain.methods import Bound, Method, Phase, Run


@dataclass(frozen=True, kw_only=True)
class AdaptiveLowRank(LowRankSettings, Method):
    """Orthogonality-informed adaptive low-rank training (OIALR).

    The network starts dense. Once the orthogonal basis of its weights has settled, each weight
    becomes ``u @ core @ vh``. ``u`` and ``vh`` are frozen, and only the small ``core`` is
    trained. Every update folds the core's own singular bases into ``u`` and ``vh``, and cuts
    what is small. With ``bases="trained"`` each weight becomes ``left @ right``, and both factors
    are trained. Steps are optimizer steps: gradient accumulation, evaluation and steps that
    ``GradScaler`` skips do not move the schedule.

    Args:
        delay_steps: Dense steps before the switch; 0 switches when attached. ``"auto"`` lets
            each layer switch by itself once its basis stability has stopped rising. Stability
            is checked at every update; until then one float32 copy of each basis is kept.
        every_steps: Steps between updates, at least one.
        rank: The rank rule: ``Relative(0.1)``, ``Energy(0.9)``, ``StoredBudget(0.5)`` or a
            rule of your own. Defaults to ``Relative(0.1)``.
        rank_rtol: Short form of ``rank=Relative(...)``, the paper's beta. Short forms are read
            once: what was chosen is in ``rank``.
        energy: Short form of ``rank=Energy(...)``.
        stored_budget: Short form of ``rank=StoredBudget(...)``.
        bases: ``"frozen"`` trains the core between frozen bases, as published: fewest trained
            numbers. ``"trained"`` trains both factors, ``k (m + n)`` numbers, all of them stored:
            learns more where there is much left to learn. One Parameter holds both. A layer that
            is low-rank already keeps the form it has.
        layer_fraction: Each update reaches this much further from the last layer to the first,
            in ``(0, 1]``: the paper's alpha. With ``delay_steps="auto"`` it has no effect:
            each layer is reached once it has settled.
        max_drop: One update drops at most this share of a rank, in ``(0, 1]``.
        min_rank_fraction: No rank falls below this share of the full rank, in ``[0, 1)``.
        dense_first: Keep the first layer dense, by position in the model.
        dense_last: Keep the last layer dense.
        skip: ``fnmatch`` patterns on qualified module names to leave alone. Each must match a
            module with a weight of its own: a block is skipped with ``"block.*"``.
        only_if_cheaper: A layer stays dense until its factored form takes fewer multiply-adds.
            Its planned rank falls with every update that reaches it. False converts every
            eligible layer at the switch.
        optimizer_state: How optimizer state follows: ``"rotate"`` into the new coordinates,
            ``"slice"`` without rotating (frozen bases only), or ``"reset"``.
        shared_attention_basis: One basis for query, key and value of packed attention, instead
            of one each.

    Raises:
        ConfigError: A setting outside its range, no rank rule, or two of them.

    Source:
        Coquelin et al., arXiv:2401.08505. Ours: ``"auto"``, the energy and budget rules, lazy
        conversion, rotated optimizer state, and the guard on the loss. After a cut that made
        the training loss jump, the guard delays the next cut of that layer. Where the model's
        output carries no loss, show it one with ``handle.observe(loss)``.
    """

    phase: ClassVar[Phase] = Phase.STRUCTURE
    name: ClassVar[str] = "adaptive_low_rank"

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
                f"{self.every_steps} switches after step {first} at the earliest. The run has "
                f"{total} steps; lower delay_steps or every_steps"
            )
        selection = Selection(
            skip=self.skip, dense_first=self.dense_first, dense_last=self.dense_last,
            shared_attention_basis=self.shared_attention_basis,
        )  # fmt: skip
        trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
        sites, refusals = find_sites(run.model, selection, trained=trained)
        require_sites(sites, refusals, "AdaptiveLowRank")
        return LowRankTraining(self, run, sites, refusals)
