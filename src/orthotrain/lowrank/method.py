"""Adaptive low-rank training as a method of ``attach``."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Self

from orthotrain._checks import require_steps
from orthotrain._doors import checked
from orthotrain._sharded import require_whole
from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.lowrank.rules import Relative
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.methods import Bound, Method, Phase, Run
from orthotrain.methods.optimizer_state import orthogonalizes


@checked
@dataclass(frozen=True, kw_only=True)
class AdaptiveLowRank(LowRankSettings, Method):
    """Low-rank training from a dense start: the weights are cut where the loss feels it least.

    The network starts dense. At the switch each weight becomes ``left @ right``, and both factors
    are trained on. Bare, it halves the stored numbers at half of the run. On a trained model,
    ``delay_steps=0`` switches after a few steps that are watched. :meth:`published` is OIALR as
    in the paper. Steps are optimizer steps: gradient accumulation, evaluation and steps that
    ``GradScaler`` skips do not move the schedule.

    Memory: until the switch, training needs what dense training needs; that is the peak.

    Args:
        delay_steps: Dense steps before the switch: a count, a share of ``total_steps`` as a
            ``float`` in ``(0, 1]``, or ``"auto"``, which lets each layer switch by itself once
            its basis stability has stopped rising. Stability is checked at every update; until
            then one float32 copy of each basis is kept. A share without ``total_steps`` is
            ``"auto"``. 0 switches when attached, or after 8 steps where data decide.
        every_steps: Steps between updates, in the same forms. ``"auto"`` makes one update with a
            ``StoredBudget``, and else 30 per run, or one per 100 steps.
        rank: The rank rule: ``StoredBudget(0.5)``, ``Energy(0.9)``, ``Relative(0.1)`` or a
            rule of your own.
        rank_rtol: Short form of ``rank=Relative(...)``, the paper's beta. Short forms are read
            once: what was chosen is in ``rank``.
        energy: Short form of ``rank=Energy(...)``.
        stored_budget: Short form of ``rank=StoredBudget(...)``.
        importance: The metric in which singular values are seen. ``"loss"``: that of inputs and
            output gradients, the second-order estimate of the loss; layers compare. ``"input"``:
            that of inputs. Both watch the ordinary passes of the eight steps before an update.
            ``"weight"``: none, as published. A layer that no gradient reached is
            cut by its own singular values and named in the summary.
        bases: ``"trained"`` trains both factors, ``k (m + n)`` numbers, all of them stored. One
            Parameter holds both. ``"frozen"`` trains the core between frozen bases, as published:
            fewest trained numbers. A layer that is low-rank already keeps the form it has.
        layer_fraction: Each update reaches this much further from the last layer to the first,
            in ``(0, 1]``: the paper's alpha. Without effect where each layer switches by itself.
        max_drop: One update drops at most this share of a rank, in ``(0, 1]``.
        min_rank_fraction: No rank falls below this share of the full rank, in ``[0, 1)``.
        dense_first: Keep the first layer dense, by position in the model.
        dense_last: Keep the last layer dense.
        only: ``fnmatch`` patterns on qualified module names to convert; all others stay.
        skip: Patterns on modules to leave alone. Each pattern must match a module with a weight
            of its own: a block is skipped with ``"block.*"``.
        also: Kinds of layers that are converted on request, as in :func:`compress`:
            ``"embedding"``, ``"lstm"``, ``"gru"``, ``"rnn"``, ``"transposed"``.
        max_aspect: A weight whose larger side is this many times the smaller stays dense.
        only_if_cheaper: A layer stays dense until its factored form takes fewer multiply-adds.
            Its planned rank falls with every update that reaches it. False converts every
            eligible layer at the switch.
        optimizer_state: How optimizer state follows: ``"rotate"`` into the new coordinates,
            ``"slice"`` without rotating (frozen bases only), or ``"reset"``.
        spread: Spread an update over steps: one layer is seen per step, then one changes per
            step, so that no step takes much longer than the others. More than one where the next
            update or the end of the run is near. False makes an update in one step. So does a
            compiled model while layers of it are dense: they turn together.
        rank_multiple: Ranks are rounded up to a multiple of this; a budget counts the rounded
            ones, so it is kept. ``"auto"`` is 32 where ``torch.compile`` runs the model, less in
            layers of a full rank below 256 or where a budget needs it, and 1 elsewhere; 16 at
            least for convolutions.
        factor_step: Factor on the steps of pairs; decoupled weight decay stays.
        core_step: Factor on the steps of cores. ``"auto"`` is ``sqrt(m n) / k`` for the
            optimizers of torch that normalize their steps entry by entry (Adam and its kin), whose
            steps would move a core too little, and 1 for all others.
        shared_attention_basis: One basis for query, key and value of packed attention, instead
            of one each.

    Raises:
        ConfigError: A setting outside its range, no rank rule, or two of them.

    Note:
        Of a model that ``torch.compile`` runs, one version serves all ranks. While the passes
        before an update are watched, code that was compiled in this process runs uncompiled.

    Source:
        Coquelin et al., arXiv:2401.08505. The metric: Martens and Grosse, arXiv:1503.05671. Ours:
        trained factors from a dense start, ``"auto"``, the energy and budget rules, lazy
        conversion, rotated optimizer state, the scaled steps, and the guard on the loss. After a
        cut that made the training loss jump, the guard delays the next cut of that layer. Where
        the model's output carries no loss, show it one with ``handle.observe(loss)``.
    """

    phase: ClassVar[Phase] = Phase.STRUCTURE
    name: ClassVar[str] = "adaptive_low_rank"

    @classmethod
    def published(  # noqa: PLR0913  # the paper's settings
        cls,
        *,
        delay_steps: int,
        every_steps: int,
        rank_rtol: float = 0.1,
        layer_fraction: float = 0.1,
        dense_first: bool = False,
        dense_last: bool = True,
        skip: Collection[str] = (),
        **others: object,
    ) -> Self:
        """OIALR as in the paper: frozen bases, cut by singular values, all converted at the switch.

        Optimizer state follows the coordinates, which the authors' code resets. An update is made
        in one step, as theirs; ``dataclasses.replace(method, spread=True)`` spreads it. A layer
        that loses no rank keeps its coordinates.

        Args:
            delay_steps: The paper's ``d``, a count.
            every_steps: The paper's ``nu``, a count.
            rank_rtol: The paper's beta.
            layer_fraction: The paper's alpha.
            dense_first: Keep the first layer dense.
            dense_last: Keep the last layer dense.
            skip: Patterns on modules to leave alone.
            others: None; what the paper does not have is refused.

        Raises:
            ConfigError: A setting that the paper does not have, or one out of its range.
        """
        if others:
            raise ConfigError(
                f"AdaptiveLowRank.published has no {', '.join(sorted(others))}: the paper sets "
                "delay_steps, every_steps, rank_rtol, layer_fraction, dense_first and dense_last. "
                'For all else build AdaptiveLowRank(importance="weight", bases="frozen", ...)'
            )
        require_steps("AdaptiveLowRank.published", "delay_steps", delay_steps, least=0)
        require_steps("AdaptiveLowRank.published", "every_steps", every_steps)
        return cls(
            delay_steps=delay_steps, every_steps=every_steps, rank=Relative(rank_rtol),
            layer_fraction=layer_fraction, dense_first=dense_first, dense_last=dense_last,
            skip=skip, importance="weight", bases="frozen", max_drop=0.5, only_if_cheaper=False,
            core_step=1.0, spread=False,
        )  # fmt: skip

    def bind(self, run: Run) -> Bound:
        """Find the layers and check schedule and budget; where it is due at once, switch.

        Warns:
            OrthotrainWarning: Muon would see both factors of a layer as one matrix.

        Raises:
            ConfigError: No eligible layer, a pattern that matches nothing, a switch that lies at
                or beyond the run's last step, a budget that no rank meets, a model on several
                devices whose data decide, a sharded one, or an optimizer that cannot train factors.
        """
        # Loaded where a run needs it: the layers and all that trains them.
        from orthotrain.lowrank.measure import require_one_device
        from orthotrain.lowrank.reachable import require_reachable_in
        from orthotrain.lowrank.sites import Selection, find_sites, require_sites
        from orthotrain.lowrank.training import LowRankTraining

        require_whole("AdaptiveLowRank", run.model)
        schedule = self.schedule(run.total_steps)
        total, first = run.total_steps, schedule.first_switch
        if total is not None and first >= total:
            remedy = "lower delay_steps or every_steps"
            if self.delay_steps == 0:
                remedy = f"delay_steps=1 to {total - 1} watches fewer steps"
                remedy = remedy if total > 1 else 'importance="weight" watches none'
            raise ConfigError(
                f"AdaptiveLowRank with delay_steps={self.delay_steps!r} and every_steps="
                f"{self.every_steps!r} switches after step {first} at the earliest. The run has "
                f"{total} steps; {remedy}"
            )
        if self.importance != "weight":
            require_one_device(run.model, f"AdaptiveLowRank with importance={self.importance!r}")
        selection = Selection(
            skip=self.skip, only=self.only, dense_first=self.dense_first,
            dense_last=self.dense_last, max_aspect=self.max_aspect,
            shared_attention_basis=self.shared_attention_basis, also=tuple(self.also),
        )  # fmt: skip
        trained = {id(parameter) for parameter in run.owners()}
        sites, refusals = find_sites(run.model, selection, trained=trained)
        require_sites(sites, refusals, "AdaptiveLowRank")
        # Before anything is trained.
        require_reachable_in(
            run.model, self.rank, sites, refusals, limits=self.limits, settings=self
        )
        training = LowRankTraining(self, schedule, run, sites, refusals, selection)
        if self.bases == "trained" and any(
            orthogonalizes(run.optimizer_of(site.parameter)) for site in sites
        ):
            warnings.warn(
                "Muon sees the two trained factors of a layer as one matrix, side by side, so its "
                'step of each factor is not orthogonal; bases="frozen" gives it one core per '
                'layer, and NearestOrthogonalGradient(..., when="update") beside another '
                "optimizer sees both factors",
                OrthotrainWarning,
                stacklevel=6,
            )
        return training
