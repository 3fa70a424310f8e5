"""One update of all layers: look, decide, agree, change, follow; at once, or one layer per step."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch

from orthotrain.lowrank.agree import Agreement
from orthotrain.lowrank.change import Change, change_site_
from orthotrain.lowrank.compiled import Compiled
from orthotrain.lowrank.decide import KEEP, decide, reached
from orthotrain.lowrank.following import FollowingCopy
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import View, check_basis, require_finite
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.lowrank.sites import Site, other_numbers
from orthotrain.lowrank.statistics import Statistics
from orthotrain.methods import Run

Record = Callable[..., None]


class Update:
    """An update on its way.

    At once, all layers are seen, ranks are decided, and layers change in one step. Spread, one
    layer is seen per step, then ranks are decided, then one layer changes per step. So no step
    does more than one layer's work. Where layers switch by themselves, the basis of one is
    compared per step before. To see a layer takes its singular values alone; factors are
    computed when it changes, of the weight that it has by then.

    With several optimizers, a layer whose gradient was computed since the step of its own
    optimizer waits for the next such step, which comes before the next update. So no gradient is
    lost. A pass that has begun finds the weight changed only where that step changes it anyway.

    Args:
        sites: All layers.
        layers: Their histories.
        settings: Of the method.
        run: With model, optimizer and step.
        agreement: With other processes.
        statistics: What was seen of the data.
        copies: Models that follow.
        record: Takes an event and its fields.
        number: Which update it is, from one.
        settling: Whether each layer switches by itself.
        compiled: Says which layers switch in company, where torch compiles the model.

    Attributes:
        waits: Positions of the layers that wait.
    """

    def __init__(  # noqa: PLR0913  # what an update touches
        self,
        sites: Sequence[Site],
        layers: Mapping[str, LayerHistory],
        settings: LowRankSettings,
        run: Run,
        *,
        agreement: Agreement,
        statistics: Statistics,
        copies: Sequence[FollowingCopy],
        record: Record,
        number: int,
        settling: bool,
        compiled: Compiled,
    ) -> None:
        self._sites, self._layers, self._settings, self._run = sites, layers, settings, run
        self._agreement, self._copies, self._record = agreement, copies, record
        self._number, self._settling, self._compiled = number, settling, compiled
        self._view = View(statistics.metric, at_once=not settings.spread)
        self._reach: set[int] | None = None
        self._failure: Exception | None = None
        self._compared = 0 if settling else len(sites)  # layers whose basis was compared
        self._position = 0  # layers seen, then layers changed
        self._ranks: list[int] | None = None
        self._cut: list[str] = []
        self._changed = self._changed_before = 0
        self._seconds = 0.0
        self.waits: list[int] = []

    @property
    def done(self) -> bool:
        """Whether every layer has what was decided."""
        return self._is_through and not self.waits

    @property
    def _is_through(self) -> bool:
        return self._ranks is not None and self._position >= len(self._sites)

    @property
    def cut_layers(self) -> list[str]:
        """Layers whose rank fell."""
        return self._cut

    @property
    def unseen(self) -> list[str]:
        """Layers that changed without any data."""
        return [] if self._settings.importance == "weight" else sorted(self._view.unseen)

    @property
    def changed_now(self) -> bool:
        """Whether the last call changed a layer, perhaps without changing its shape."""
        return self._changed > self._changed_before

    @torch.no_grad()
    def at_once(self) -> None:
        """All that is left of it."""
        started, self._changed_before = time.perf_counter(), self._changed
        if self._ranks is None:
            self._decide()
        ready = self._ready(range(self._position, len(self._sites)))
        while not self._is_through:
            self._change_next(ready)
        self._view.forget_vectors()
        self._finish(started)

    @torch.no_grad()
    def catch_up(self) -> None:
        """Change the waiting layers whose optimizer has just stepped."""
        started, self._changed_before = time.perf_counter(), self._changed
        ready = self._ready(self.waits)
        self.waits = [i for i in self.waits if i not in ready]
        for i in sorted(ready):
            self._change_at(i)
        self._finish(started)

    @torch.no_grad()
    def next_layers(self, count: int) -> None:
        """The share of one step: ``count`` layers are seen or changed."""
        started, self._changed_before = time.perf_counter(), self._changed
        for _ in range(count):
            if self._compared < len(self._sites):
                self._unless_failed(self._compare_next)
                self._compared += 1
            elif self._ranks is None:
                self._unless_failed(lambda: self._see(self._position))
                self._position += 1
                if self._position >= len(self._sites):
                    self._decide()
            elif not self._is_through:
                self._change_next(self._ready([self._position]))
            self._pass_over_kept()
        self._finish(started)

    def _pass_over_kept(self) -> None:
        if self._ranks is not None:
            while not self._is_through and self._ranks[self._position] == KEEP:
                self._position += 1

    def _finish(self, started: float) -> None:
        self._seconds += time.perf_counter() - started
        if self.done:
            self._record(
                "update", update=self._number, changed=self._changed, cut=len(self._cut),
                seconds=self._seconds,
            )  # fmt: skip

    # --- look and decide ----------------------------------------------------------------------

    def _unless_failed(self, part: Callable[[], None]) -> None:
        """The deciding process does a part; a failure is told to all where they decide."""
        if self._agreement.decides and self._failure is None:
            try:
                part()
            except Exception as error:  # raised again in _decisions
                self._failure = error

    def _compare_next(self) -> None:
        site = self._sites[self._compared]
        check_basis(site, self._layers[site.name])

    def _see(self, i: int) -> None:
        reach = self._reached()
        if i in reach or (reach and self._settings.rank.sees_all_layers):
            site = self._sites[i]
            self._view.look(
                i, site, self._layers[site.name], self._settings, within_reach=i in reach
            )

    def _reached(self) -> set[int]:
        if self._reach is None:
            self._reach = reached(
                self._sites, self._layers, update=self._number,
                layer_fraction=self._settings.layer_fraction, settling=self._settling,
            )  # fmt: skip
        return self._reach

    def _decide(self) -> None:
        self._ranks = self._agreement.ranks(self._decisions, count=len(self._sites))
        self._position = 0

    def _decisions(self) -> list[int]:
        """Look at what was not seen yet, and decide; runs on the process that decides for all."""
        if self._failure is not None:
            raise self._failure
        while self._compared < len(self._sites):
            self._compare_next()
            self._compared += 1
        for i in range(len(self._sites)):
            if i not in self._view.candidates:
                self._see(i)
        rule = self._settings.rank
        others = other_numbers(self._run.model, self._sites) if rule.sees_all_layers else 0
        decisions = decide(
            self._sites, self._layers, self._settings, self._view.weighed(self._settings),
            other_numbers=others, settling=self._settling,
        )  # fmt: skip
        decisions = self._compiled.together(self._sites, decisions)
        for site, rank in zip(self._sites, decisions, strict=True):
            if rank != KEEP:
                require_finite(site)  # all of them before the first is changed
        return decisions

    # --- change and follow --------------------------------------------------------------------

    def _ready(self, positions: Sequence[int]) -> set[int]:
        """Those of some layers that may change now; the same on all processes."""
        if not (positions and self._run.has_several):
            return set(positions)
        flags = self._agreement.ranks(
            lambda: [self._run.may_change_shape(self._sites[i].parameter) for i in positions],
            count=len(positions),
        )
        return {i for i, flag in zip(positions, flags, strict=True) if flag}

    def _change_next(self, ready: Container[int]) -> None:
        assert self._ranks is not None
        i = self._position
        self._position += 1
        if self._ranks[i] == KEEP:
            return
        if i in ready:
            self._change_at(i)
        else:
            self.waits.append(i)

    def _change_at(self, i: int) -> None:
        assert self._ranks is not None
        change = self._change(i, self._ranks[i])
        self._changed += 1
        if change.rank < change.rank_before:
            self._cut.append(self._sites[i].name)

    def _change(self, i: int, rank: int) -> Change:
        """Take the agreed factors of a site; optimizer state and copies follow."""
        site = self._sites[i]
        cut = self._agreement.cut(lambda: self._view.cut(i, site, rank), site, rank=rank)
        layer = self._layers[site.name]
        change = change_site_(site, layer, cut, self._run, settings=self._settings)
        if site.trains_bases:
            self._agreement.share(site.parameter)
        for copy in self._copies:
            copy.follow(site)
        self._record(
            "switch" if change.switched else "turn", layer=site.name, rank=rank,
            rank_before=change.rank_before, full_rank=site.layout.full_rank,
            kept_energy=change.kept_energy,
        )  # fmt: skip
        return change

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How far it is, for an update that is spread over steps."""
        return {
            "number": self._number,
            "compared": self._compared,
            "position": self._position,
            "reach": None if self._reach is None else sorted(self._reach),
            "ranks": None if self._ranks is None else list(self._ranks),
            "cut": list(self._cut),
            "changed": self._changed,
            "waits": list(self.waits),
            "view": self._view.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._number, self._position = int(state["number"]), int(state["position"])
        self._reach = None if state["reach"] is None else set(state["reach"])
        # Older states compared all bases at the first look.
        before = 0 if self._reach is None and self._settling else len(self._sites)
        self._compared = int(state.get("compared", before))
        self._ranks = None if state["ranks"] is None else list(state["ranks"])
        self._cut, self._changed = list(state["cut"]), int(state["changed"])
        self.waits = list(state.get("waits", []))
        self._view.load_state_dict(state["view"], self._sites, self._layers, self._settings)
