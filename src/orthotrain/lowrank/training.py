"""Adaptive low-rank training at work on one run: when, which layers, and what follows them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from orthotrain.errors import ConfigError, StateError
from orthotrain.layers import stored_numbers
from orthotrain.layers._factors import follow_state_dict, low_rank_class_of
from orthotrain.linalg import basis_stability, polar_factor
from orthotrain.lowrank.distributed import Agreement, Decomposition
from orthotrain.lowrank.history import LayerHistory, LossGuard
from orthotrain.lowrank.policy import (
    Candidate,
    decided_ranks,
    factored_pays,
    tail_length,
    updates_to_reach_all,
)
from orthotrain.lowrank.sites import Refusal, Site, other_numbers
from orthotrain.lowrank.surgery import (
    cut_site_,
    decomposed,
    require_finite,
    share_tied_factors_,
    spectrum,
)
from orthotrain.lowrank.tracking import FollowingCopy
from orthotrain.methods import Bound, Row, Run
from orthotrain.methods.optimizer_state import (
    BasisChange,
    check_shapes,
    check_supported,
    resize,
)

if TYPE_CHECKING:
    from orthotrain.lowrank.method import AdaptiveLowRank

_KEEP = -1  # a decision: leave this site as it is


class LowRankTraining(Bound):
    """The working half of :class:`AdaptiveLowRank`."""

    def __init__(
        self,
        settings: AdaptiveLowRank,
        run: Run,
        sites: Sequence[Site],
        refusals: Sequence[Refusal],
    ) -> None:
        self._settings = settings
        self._run = run
        self._sites = list(sites)
        self._refusals = list(refusals)
        self._layers = {site.name: LayerHistory() for site in sites}
        self._guard = LossGuard()
        self._updates = 0
        self._copies: list[FollowingCopy] = []
        self._decomposed: dict[str, Decomposition] = {}
        self._agreement = Agreement(run)
        self._parameters = [site.parameter for site in sites]
        self._shapes = self._present_shapes()
        for site in sites:
            _check_optimizer(run, site)
        if settings.delay_steps == 0:
            self._update()
        self._load_hooks = _follow_checkpoints(run.model)

    def before_step(self) -> None:
        """Refuse to step on optimizer state of another shape.

        After a change this method did not make: a part of the model was loaded by itself, or
        someone called ``to_dense`` or ``compress`` in the middle of training.
        """
        if self._present_shapes() != self._shapes:
            self._shapes_changed()

    def _shapes_changed(self) -> None:
        check_shapes(self._run.optimizer)
        self._shapes = self._present_shapes()

    def _present_shapes(self) -> list[torch.Size]:
        return [parameter.shape for parameter in self._parameters]

    def after_step(self) -> None:
        """Update where one is due: at the switch and every ``every_steps`` after it."""
        if self._guard.watching:
            self._judge_last_cut()
        delay, every = self._settings.delay_steps, self._settings.every_steps
        first = every if delay == "auto" else delay
        since = self._run.step - first
        if since >= 0 and since % every == 0:
            self._update()

    def observe(self, loss: float, *, step: int) -> None:
        """Take one training loss, to notice a cut that hurts."""
        self._guard.observe(loss)

    def after_load(self) -> None:
        """The model was loaded: tied layers share factors again, wrappers learn the shapes."""
        share_tied_factors_(self._run.model)
        self._agreement.model_loaded()

    # --- one update --------------------------------------------------------------------------

    @torch.no_grad()
    def _update(self) -> None:
        started = time.perf_counter()
        self._run.deliver_losses()
        self._judge_last_cut(final=True)
        self._updates += 1
        ranks = self._agreement.ranks(self._decisions, count=len(self._sites))
        due = [(s, rank) for s, rank in zip(self._sites, ranks, strict=True) if rank != _KEEP]
        cut = [site.name for site, rank in due if self._change(site, rank)]
        if due:
            self._agreement.structure_changed()
            self._shapes_changed()
        if cut:
            self._guard.cut_happened(cut)
        self._run.record(
            method=self._settings.name, event="update", update=self._updates,
            changed=len(due), cut=len(cut), seconds=time.perf_counter() - started,
        )  # fmt: skip

    def _reach(self) -> set[int]:
        """Indices of the sites this update may cut."""
        count = len(self._sites)
        if self._settings.delay_steps == "auto":
            settled = [site.factored or self._layers[site.name].settled for site in self._sites]
            return {i for i in range(count) if settled[i]}
        fraction = self._settings.layer_fraction
        tail = tail_length(self._updates, layers=count, layer_fraction=fraction)
        return set(range(count - tail, count))

    def _waits(self, site: Site) -> bool:
        """Whether a site within reach sits this update out."""
        layer = self._layers[site.name]
        if layer.wait_updates > 0:
            layer.wait_updates -= 1
            return True
        return not site.parameter.requires_grad

    def _decisions(self) -> list[int]:
        """The new rank of each site, or that it is left alone."""
        if self._settings.delay_steps == "auto":
            self._check_bases()
        reach = {i for i in sorted(self._reach()) if not self._waits(self._sites[i])}
        planned = self._planned_ranks(reach)
        everything = not self._settings.only_if_cheaper
        at_once = everything and self._settings.delay_steps != "auto"
        decisions = []
        for i, site in enumerate(self._sites):
            layer, layout = self._layers[site.name], site.layout
            if i in reach:
                layer.planned_rank = planned[i]
                pays = everything or factored_pays(layout.m, layout.n, planned[i])
                decisions.append(planned[i] if site.factored or pays else _KEEP)
            elif at_once and not site.factored and site.parameter.requires_grad:
                decisions.append(layout.full_rank)
            else:
                decisions.append(_KEEP)
        for site, rank in zip(self._sites, decisions, strict=True):
            if rank != _KEEP:
                require_finite(site)  # all of them before the first is changed
        return decisions

    def _planned_ranks(self, reach: set[int]) -> dict[int, int]:
        """What the rank rule gives for the sites within reach."""
        budget = self._settings.stored_budget is not None
        known = range(len(self._sites)) if budget else sorted(reach)
        candidates = [self._candidate(self._sites[i], within_reach=i in reach) for i in known]
        ranks = decided_ranks(
            candidates, rule=self._settings.rule, limits=self._settings.limits,
            other_numbers=other_numbers(self._run.model, self._sites) if budget else 0,
        )  # fmt: skip
        return dict(zip(known, ranks, strict=True))

    def _candidate(self, site: Site, *, within_reach: bool) -> Candidate:
        layer, layout = self._layers[site.name], site.layout
        if site.factored and within_reach:  # it will turn in any case: decompose it once
            self._decomposed[site.name] = decomposed(site)
            _, s, _ = self._decomposed[site.name]
        else:
            s = spectrum(site)
        return Candidate(
            spectrum=s.reshape(-1, s.shape[-1]), cut_energy=layer.cut_energy,
            ceiling=site.rank if site.factored or layer.planned_rank < 0 else layer.planned_rank,
            m=layout.m, n=layout.n, within_reach=within_reach,
            may_stay_dense=self._settings.only_if_cheaper and not site.factored,
            multiple=site.multiple,
        )  # fmt: skip

    def _change(self, site: Site, rank: int) -> bool:
        """Take a site to its new rank, state and copies with it; whether something was cut."""
        run, layer = self._run, self._layers[site.name]
        switched, before = not site.factored, site.rank
        p, s, qh = self._agreement.factors(lambda: self._decomposition(site), site, rank=rank)
        energy = s.square().reshape(site.layout.blocks, -1)
        layer.energy_was_cut(energy[:, rank:].sum(1).tolist())
        kept = float(energy[:, :rank].sum())
        if switched:
            layer.switched_at = run.step
        cut_site_(site, p, s[..., :rank], qh)
        change = BasisChange(left=p, right=qh.mT)
        resize(
            run.optimizer, site.parameter, change, new_shape=site.parameter.shape,
            mode=self._settings.optimizer_state, name=site.name,
        )  # fmt: skip
        for copy in self._copies:
            copy.follow(site)
        run.record(
            method=self._settings.name, event="switch" if switched else "turn",
            layer=site.name, rank=rank, rank_before=before, full_rank=site.layout.full_rank,
            kept_energy=kept / max(kept + sum(layer.cut_energy), sys.float_info.min),
        )  # fmt: skip
        return rank < before

    def _decomposition(self, site: Site) -> Decomposition:
        """The one the decision was made on, where there is one."""
        known = self._decomposed.pop(site.name, None)
        return decomposed(site) if known is None else known

    # --- what makes a layer wait --------------------------------------------------------------

    def _judge_last_cut(self, *, final: bool = False) -> None:
        """Delay the next cut of layers after whose cut the loss jumped, twice as long each time."""
        guilty = self._guard.verdict(final=final)
        for name in guilty if self._agreement.decides else ():
            layer = self._layers[name]
            layer.strikes += 1
            layer.wait_updates = 2 ** (layer.strikes - 1)
            self._run.record(
                method=self._settings.name, event="loss_jump", layer=name,
                wait_updates=layer.wait_updates,
            )  # fmt: skip

    def _check_bases(self) -> None:
        """Compare each dense layer's basis with the one at the last update."""
        for site in self._sites:
            layer = self._layers[site.name]
            if site.factored or layer.settled:
                continue
            require_finite(site)
            basis = polar_factor(site.layout.matrix(site.parameter.detach()).float())
            if layer.basis is not None:
                layer.stability.append(float(basis_stability(layer.basis.to(basis), basis).mean()))
            layer.basis = None if layer.settled else basis

    # --- what is told -------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """One row a site, in model order."""
        return [self._row(site) for site in self._sites]

    def _row(self, site: Site) -> Row:
        layout, layer, dense = site.layout, self._layers[site.name], site.dense_numbers
        numbers = site.parameter.numel()
        trainable = numbers if site.parameter.requires_grad else 0
        if not site.factored:
            note = f"rank {layer.planned_rank} does not pay yet" if layer.planned_rank > 0 else ""
            note = note if trainable else "frozen"
            return Row(site.name, layout.shape, None, trainable, dense, dense, "dense", note)
        k = site.rank
        stored = layout.blocks * stored_numbers(layout.m, layout.n, k)
        since = f"since step {layer.switched_at}" if layer.switched_at >= 0 else ""
        said = (
            "" if trainable else "frozen",
            since if trainable else "",
            "stores more than dense" if stored > dense else "",
        )
        return Row(
            name=site.name, shape=layout.shape, rank=k, trainable=trainable, stored=stored,
            dense=dense, form="factored" if factored_pays(layout.m, layout.n, k) else
            "materialized", note=", ".join(filter(None, said)), buffers=stored - numbers,
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Layers left as they are with the reason, cuts that hurt, and what has no effect yet."""
        notes = [f"{refusal.name}: {refusal.reason}" for refusal in self._refusals]
        if not self._updates and any(site.factored for site in self._sites):
            notes.append(
                "layers are low-rank although no update was made: where this is a resumed run, "
                "handle.load_state_dict takes back its schedule"
            )
        planned = any(layer.planned_rank > 0 for layer in self._layers.values())
        if planned and not any(site.factored for site in self._sites):
            notes.append(
                f"no layer is low-rank after update {self._updates}: no planned rank pays yet; "
                "wait for more updates, cut more (energy, stored_budget, a larger rank_rtol) or "
                "set only_if_cheaper=False"
            )
        notes += [
            f"{name}: {layer.strikes} of its cuts made the loss jump, next cuts delayed"
            for name, layer in self._layers.items()
            if layer.strikes
        ]
        if self._updates and not self._guard.has_seen_losses:
            notes.append(
                "no training loss was seen, so cuts that hurt go unnoticed; "
                "call handle.observe(loss) once a step"
            )
        return notes

    def plan(self) -> list[str]:
        """When layers switch and when every layer is reached."""
        settings, total, count = self._settings, self._run.total_steps, len(self._sites)
        every = settings.every_steps
        lines = [f"{count} layers can become low-rank, {len(self._refusals)} stay as they are"]
        if settings.delay_steps == "auto":
            lines.append(f"each layer switches once its basis settles, checked every {every} steps")
            return lines
        reach_all = updates_to_reach_all(layers=count, layer_fraction=settings.layer_fraction)
        last = settings.delay_steps + (reach_all - 1) * every
        who = "layers whose rank pays" if settings.only_if_cheaper else "all layers"
        lines.append(f"{who} switch after step {settings.delay_steps}, an update every {every}")
        lines.append(f"update {reach_all}, after step {last}, is the first to reach every layer")
        if total is not None and last > total:
            updates = (total - settings.delay_steps) // every + 1
            reached = tail_length(updates, layers=count, layer_fraction=settings.layer_fraction)
            lines.append(f"the run ends at step {total}: only {reached} of {count} are reached")
        return lines

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counters, layer histories and the loss window; structure is in the model's own."""
        return {
            "updates": self._updates,
            "layers": {name: layer.state_dict() for name, layer in self._layers.items()},
            "guard": self._guard.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; before or after the model's own, in any order.

        Raises:
            StateError: The state is of other layers.
        """
        theirs = state.get("layers", {})
        if set(theirs) != set(self._layers):
            odd = sorted(set(theirs) ^ set(self._layers))[:5]
            raise StateError(
                f"AdaptiveLowRank needs the state of the same {len(self._layers)} layers, got "
                f"{len(theirs)} layers that differ in {odd}; attach with the settings (skip, "
                "dense_first, dense_last) the state was saved with"
            )
        self._layers = {name: LayerHistory.from_state_dict(theirs[name]) for name in self._layers}
        self._updates = int(state["updates"])
        self._guard.load_state_dict(state["guard"])

    def track(self, model: nn.Module) -> None:
        """Make a copy of the model follow, from its present structure on."""
        copy = FollowingCopy(model, self._run.model, self._sites)
        for site in self._sites:
            copy.follow(site)
        self._load_hooks += _follow_checkpoints(model)
        self._copies.append(copy)

    def detach(self) -> None:
        """Stop following checkpoints; layers stay as they are."""
        for hook in self._load_hooks:
            hook.remove()
        self._load_hooks.clear()


def _follow_checkpoints(model: nn.Module) -> list[RemovableHandle]:
    """Let every layer of a model take the structure of a state dict before its values."""
    return [
        module.register_load_state_dict_pre_hook(follow_state_dict)  # type: ignore[no-untyped-call]
        for module in model.modules()
        if low_rank_class_of(module) is not None
    ]


def _check_optimizer(run: Run, site: Site) -> None:
    """Refuse an optimizer that cannot train the core of this site."""
    try:
        check_supported(run.optimizer, new_shape=site.layout.factor_shapes(1)[1])
    except ConfigError as error:
        raise ConfigError(f"AdaptiveLowRank cannot convert {site.name}: {error}") from error
