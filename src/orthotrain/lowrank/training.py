"""Adaptive low-rank training at work on one run: when an update is due, and its one road."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from orthotrain.errors import OrthotrainWarning, StateError
from orthotrain.lowrank.agree import Agreement
from orthotrain.lowrank.compiled import Compiled
from orthotrain.lowrank.cut import stored_in
from orthotrain.lowrank.following import FollowingCopy, follow_checkpoints, share_tied_factors_
from orthotrain.lowrank.gradient_hooks import release_hooks
from orthotrain.lowrank.guard import LossGuard
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.present import (
    Present,
    left_by_settings,
    look_again,
    never_seen,
    unseen_hooks,
)
from orthotrain.lowrank.schedule import Schedule
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.lowrank.sites import Refusal, Selection, Site, other_numbers, require_supported
from orthotrain.lowrank.statistics import Statistics
from orthotrain.lowrank.step_scale import StepScale
from orthotrain.lowrank.tell import notes_on, plan_of, row_of
from orthotrain.lowrank.update import Update
from orthotrain.methods import Bound, Row, Run
from orthotrain.methods._state_check import STATE_IS_MISSING
from orthotrain.methods.optimizer_state import check_shapes


class LowRankTraining(Bound):
    """The working half of ``AdaptiveLowRank``."""

    def __init__(
        self,
        settings: LowRankSettings,
        schedule: Schedule,
        run: Run,
        sites: Sequence[Site],
        refusals: Sequence[Refusal],
        selection: Selection,
    ) -> None:
        self._settings = settings
        self._schedule = schedule
        self._run = run
        self._sites = list(sites)  # the one list that all parts hold
        self._selection = selection
        self._layers = {site.name: LayerHistory() for site in sites}
        self._guard = LossGuard()
        self._updates = 0
        self._copies: list[FollowingCopy] = []
        self._agreement = Agreement(run)
        self._compiled = Compiled(settings, run, self._agreement)
        self._statistics = Statistics(
            self._sites, settings.importance, self._agreement, compiled=self._compiled
        )
        self._unseen: list[str] = []
        inside = sum(site.dense_numbers for site in sites)
        outside = other_numbers(run.model, sites)
        self._dense_numbers = inside + outside
        self._stored_at_start = outside + sum(map(stored_in, sites))
        self._step_scale = StepScale(
            self._sites, run, core=settings.core_step, pair=settings.factor_step
        )
        self._last_seen = Present(self._sites, [], list(refusals))
        self._model_hooks: list[RemovableHandle] = []
        self._copy_hooks: list[RemovableHandle] = []
        self._shapes = self._present_shapes()
        for site in sites:
            require_supported(
                run.optimizer_of(site.parameter), site, shape=site.layout.factor_shapes(1)[1],
                what="AdaptiveLowRank cannot convert",
            )  # fmt: skip
        self._low_rank_before = {site.name for site in sites if site.factored}
        self._has_state = self._state_is_missing = False
        self._pending: Update | None = None
        self._compiled.watch()  # nothing is refused any more
        if schedule.first == 0:
            self._begin()
            self._go_on()
        self._watch()
        self._model_hooks = follow_checkpoints(run.model)

    def before_step(self) -> None:
        """Refuse a run that was resumed in part; remember what the step is about to change."""
        if self._state_is_missing:
            raise StateError(
                "AdaptiveLowRank: the model that was loaded is low-rank, and its schedule is at "
                f"its start; {STATE_IS_MISSING}"
            )
        if self._run.step == 0 and self._low_rank_before and not self._has_state:
            self._warn_of_a_late_start()
        self._leave_out_missing()
        self._step_scale.step_begins()

    def _warn_of_a_late_start(self) -> None:
        """Say that the schedule starts over where layers were low-rank and trained before."""
        before, self._low_rank_before = self._low_rank_before, set()
        owners = self._run.owners()
        for site in self._sites:
            optimizer = owners.get(site.parameter)
            state = {} if optimizer is None else optimizer.state.get(site.parameter, {})
            if site.name in before and state.get("step", 0) > 0:
                warnings.warn(
                    f"AdaptiveLowRank starts anew on {site.name}, which was low-rank at attach "
                    f"and has been trained for {int(state['step'])} steps. If a run is resumed: "
                    f"{STATE_IS_MISSING}",
                    OrthotrainWarning,
                    stacklevel=2,
                )
                return

    def _leave_out_missing(self) -> None:
        """Forget layers whose weight was pruned, parametrized or cut by hand since."""
        missing = [site for site in self._sites if not site.intact]
        if missing:
            self._pending = None
            for site in missing:
                self._statistics.forget(site)
            self._look_again(take_new=False)

    def _present_shapes(self) -> list[torch.Size]:
        return [site.parameter.shape for site in self._sites]

    def after_each(self) -> None:
        """Scale the step; change the layers that waited for the step of their own optimizer."""
        self._leave_out_missing()
        self._step_scale.step_ended()
        if self._pending is not None and self._pending.waits:
            self._pending.catch_up()
            self._changed()

    def after_step(self) -> None:
        """Update where one is due; watch the passes where one is near."""
        self._leave_out_missing()
        self._statistics.end_step()
        self._judge_last_cut()
        if self._schedule.due(self._run.step):
            self._begin()
        if self._pending is not None:
            self._go_on(at_once=self._is_whole())
        self._watch()

    def _is_whole(self) -> bool:
        """Whether the rest of an update is done in this step."""
        if not self._settings.spread or self._run.step == self._run.total_steps:
            return True
        return self._compiled.at_once(self._sites)

    def _watch(self) -> None:
        """Watch the passes of the next step where an update is near."""
        if self._pending is not None:
            return
        watched = self._schedule.watched(self._run.step)
        if watched and not self._statistics.active:
            self._look_again(take_new=True)
            self._agreement.require_same(self._sites)
            if self._sites:
                self._statistics.open()
        elif not watched and self._statistics.active:
            self._statistics.close()

    def _present(self, *, changing: bool = False) -> Present:
        if self._run.has_all_optimizers:  # a function that trains may return the handle
            self._last_seen = look_again(self._run, self._selection, self._sites, changing=changing)
        return self._last_seen

    def _look_again(self, *, take_new: bool, changing: bool = False) -> None:
        """Leave out layers that are gone; take those that are new, where they can be judged."""
        present = self._present(changing=changing)
        if not take_new:
            present = replace(present, new=[])
        if not present.new and present.kept == self._sites:
            return
        for site in self._sites:
            if site not in present.kept:
                self._layers.pop(site.name, None)
        self._sites[:] = present.together(self._run.model)
        for site in self._sites:
            self._layers.setdefault(site.name, LayerHistory())
        for copy in self._copies:
            copy.take(self._sites)
        for hook in self._model_hooks:
            hook.remove()
        self._model_hooks = follow_checkpoints(self._run.model)
        self._shapes = self._present_shapes()

    def observe(self, loss: float, *, step: int) -> None:
        """Take one training loss, to notice a cut that hurts."""
        self._guard.cutting = self._pending is not None and bool(self._pending.cut_layers)
        self._guard.observe(loss)

    def after_load(self) -> None:
        """The model was loaded: tied layers share factors again, wrappers learn the shapes."""
        if not self._updates and not self._has_state:
            low_rank = {site.name for site in self._sites if site.factored}
            self._state_is_missing = not low_rank <= self._low_rank_before
        share_tied_factors_(self._run.model)
        self._agreement.model_loaded()

    # --- updates ------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start an update; what is left of one that is still on its way is done at once."""
        if self._pending is not None:
            self._go_on()
        self._run.deliver_losses()
        self._judge_last_cut(final=True)
        # What was watched are the layers of the window's first step.
        self._look_again(take_new=not self._statistics.active, changing=True)
        self._agreement.require_same(self._sites)
        if not self._sites:
            self._statistics.close()
            return
        self._statistics.require_data()
        self._statistics.stop()
        self._compiled.update_begins(self._sites)
        self._updates += 1
        self._pending = self._new_update()

    def _new_update(self) -> Update:
        return Update(
            self._sites, self._layers, self._settings, self._run, agreement=self._agreement,
            statistics=self._statistics, copies=self._copies, record=self._record,
            number=self._updates, settling=self._schedule.settling, compiled=self._compiled,
        )  # fmt: skip

    def _go_on(self, *, at_once: bool = True) -> None:
        """All of the pending update, or the share of one step."""
        update = self._pending
        assert update is not None
        if at_once:
            update.at_once()
        else:
            update.next_layers(
                self._schedule.layers_per_step(len(self._sites), total_steps=self._run.total_steps)
            )
        self._changed()

    def _changed(self) -> None:
        """Tell of what the pending update has just done, and end it once it is done."""
        update = self._pending
        assert update is not None
        if self._present_shapes() != self._shapes or update.changed_now:
            self._agreement.structure_changed()
            for optimizer in self._run.optimizers:
                check_shapes(optimizer)
            self._shapes = self._present_shapes()
        if update.done:
            self._pending = None
            self._compiled.update_ended(self._sites)
            self._unseen = update.unseen
            self._statistics.close()
            if update.cut_layers:
                self._guard.cut_happened(update.cut_layers)

    def _judge_last_cut(self, *, final: bool = False) -> None:
        """Delay the next cut of layers after whose cut the loss jumped, twice as long each time."""
        guilty = self._guard.verdict(final=final)
        for name in guilty if self._agreement.decides else ():
            layer = self._layers[name]
            layer.strikes += 1
            layer.wait_updates = 2 ** (layer.strikes - 1)
            self._record("loss_jump", layer=name, wait_updates=layer.wait_updates)

    # --- what is told -------------------------------------------------------------------------

    def acts_on(self) -> list[str]:
        """Name and sizes of each layer."""
        return [f"{site.name} ({site.layout})" for site in self._sites]

    def _record(self, event: str, **fields: Any) -> None:
        self._run.record(method="adaptive_low_rank", event=event, **fields)

    def rows(self) -> list[Row]:
        """One row per site, in model order."""
        present = self._present()
        return [row_of(site, self._layers[site.name]) for site in present.kept]

    def notes(self) -> list[str]:
        """Layers left as they are with the reason, cuts that hurt, and what has no effect yet."""
        present = self._present()
        late = self._schedule.every is None and (self._updates > 0 or self._statistics.active)
        then = "no later one is due, so it stays dense" if late else "a later one takes it"
        new = [
            Refusal(site.name, f"it came or changed after the layers of an update were set; {then}")
            for site in present.new
        ]
        if self._pending is not None:
            new.append(Refusal("update", f"number {self._updates} is on its way, step by step"))
        new += [Refusal(name, never_seen(h)) for name, h in unseen_hooks(present.kept).items()]
        return notes_on(
            present.kept, [*present.refusals, *new], self._layers, schedule=self._schedule,
            updates=self._updates, losses_seen=self._guard.has_seen_losses, unseen=self._unseen,
        ) + self._compiled.notes()  # fmt: skip

    def plan(self) -> list[str]:
        """When layers switch and when every layer is reached."""
        return plan_of(
            self._settings, self._schedule, self._sites, refused=len(self._last_seen.refusals),
            numbers=self._dense_numbers, stored=self._stored_at_start,
            total_steps=self._run.total_steps,
        )  # fmt: skip

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counters, histories, losses and statistics; structure is in the model's own."""
        return {
            "updates": self._updates,
            "compiled": self._compiled.state_dict(),
            "layers": {name: layer.state_dict() for name, layer in self._layers.items()},
            "guard": self._guard.state_dict(),
            "unseen": list(self._unseen),
            "statistics": self._statistics.state_dict(),
            "pending": None if self._pending is None else self._pending.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; before or after the model's own, in any order.

        Raises:
            StateError: The state is of other layers.
        """
        theirs = state.get("layers", {})
        wrong = {site.name for site in self._sites} - set(theirs)
        if odd := set(theirs) ^ set(self._layers):
            resting = {refusal.name for refusal in self._present().refusals}
            wrong |= odd - (resting - left_by_settings(self._run, self._selection))
        if wrong:
            raise StateError(
                f"AdaptiveLowRank needs the state of the same {len(self._layers)} layers, got "
                f"{len(theirs)} layers that differ in {sorted(wrong)[:5]}. Attach with the "
                "settings that the state was saved with: skip, only, also, max_aspect, "
                "dense_first, dense_last"
            )
        self._has_state, self._state_is_missing = True, False
        self._layers = {name: LayerHistory.from_state_dict(theirs[name]) for name in theirs}
        self._updates = int(state["updates"])
        self._guard.load_state_dict(state["guard"])
        self._compiled.load_state_dict(state.get("compiled", {}), self._sites)
        self._unseen = list(state.get("unseen", []))  # older states have neither
        self._statistics.load_state_dict(state.get("statistics", {}))
        self._pending = None
        if (pending := state.get("pending")) is not None:
            self._pending = self._new_update()
            self._pending.load_state_dict(pending)

    def track(self, model: nn.Module) -> None:
        """Make a copy of the model follow, from its present structure on."""
        copy = FollowingCopy(model, self._run.model, self._sites)
        for site in self._sites:
            copy.follow(site, changed=False)
        self._copy_hooks += follow_checkpoints(model)
        self._copies.append(copy)

    def detach(self) -> None:
        """Stop following checkpoints and watching passes; layers stay as they are."""
        self._statistics.close()
        self._compiled.detach()
        for hook in (*self._model_hooks, *self._copy_hooks):
            hook.remove()
        release_hooks(self._run.model.parameters())
