"""What is done otherwise where ``torch.compile`` runs the model: few versions of it, whole ranks.

A version of a compiled model serves all ranks, but not a layer that turns from dense to low-rank.
So layers turn together.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.layers._rank_symbols import let_ranks_vary, versions
from orthotrain.lowrank.agree import Agreement
from orthotrain.lowrank.decide import KEEP
from orthotrain.lowrank.reachable import require_reachable
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.lowrank.sites import Site, other_numbers
from orthotrain.lowrank.uncompiled import Uncompiled
from orthotrain.methods import Run
from orthotrain.methods._compiled import CompiledHook, has_compiled_parts

# Matrix units of GPUs take tiles of 16 or 32; finer steps save nothing there.
_WIDEST_RUNG: Final = 32
_FEWEST_RUNGS: Final = 8
# With the dense one and the one after all layers have turned, four versions of a model.
_ROUNDS_IN_PART: Final = 2
_VERSIONS_LEFT: Final = 2


def rung_of(full_rank: int) -> int:
    """To which multiple ranks of a compiled layer are rounded: a power of two, 32 at most.

    At least eight of them fit into the full rank, so a small layer can be cut, too.

    >>> [rung_of(full_rank) for full_rank in (10, 64, 128, 256, 3072)]
    [1, 8, 16, 32, 32]
    """
    step = max(1, full_rank // _FEWEST_RUNGS)
    return min(_WIDEST_RUNG, 1 << (step.bit_length() - 1))


class Compiled:
    """Follows whether the model is compiled, and what low-rank training does then.

    Args:
        settings: Of the method.
        run: With the model.
        agreement: With other processes, which must all do the same.

    Attributes:
        is_known: Whether the processes agreed, at an update, that the model is compiled.
        waiting: Layers that the last update left dense until others turn with them.
        uncompiled: Has compiled code run uncompiled while passes are watched.
    """

    def __init__(self, settings: LowRankSettings, run: Run, agreement: Agreement) -> None:
        self._settings, self._run, self._agreement = settings, run, agreement
        self.uncompiled = Uncompiled()
        self._hook = _ModelHook(run.model, self.uncompiled)
        self._registered: RemovableHandle | None = None
        self.is_known = False
        self.waiting: list[str] = []
        self._rounds = 0
        self._dense: set[str] = set()
        self._warned = False
        self._versions_before = versions()
        let_ranks_vary()

    def watch(self) -> None:
        """Look at the passes of the model from now on."""
        self._registered = self._run.model.register_forward_pre_hook(self._hook)

    def seen(self) -> bool:
        """Whether this process has seen that the model, or a part of it, is compiled."""
        run = self._run
        return (
            self.is_known or run.compiled or self._hook.was_compiled
            or has_compiled_parts(run.model)
        )  # fmt: skip

    def update_begins(self, sites: Sequence[Site]) -> None:
        """Agree whether the model is compiled, and to which multiples its ranks are rounded.

        Args:
            sites: All layers.
        """
        let_ranks_vary()  # the list is the user's, too, who may have written it anew
        if not self.is_known:
            self.is_known = bool(self._agreement.ranks(lambda: [int(self.seen())], count=1)[0])
        self._dense = {site.name for site in sites if not site.factored}
        self._warn_if_near_the_limit()
        self.set_rungs(sites)

    def set_rungs(self, sites: Sequence[Site]) -> None:
        """Set the multiples of ranks; where the rule cannot be met with them, smaller ones."""
        chosen = self._settings.rank_multiple
        if chosen != "auto" or not self.is_known:
            for site in sites:
                site.rung = 1 if chosen == "auto" else chosen
            return
        most = _WIDEST_RUNG
        while most:
            for site in sites:
                site.rung = min(most, rung_of(site.layout.full_rank))
            try:
                require_reachable(
                    self._settings.rank, sites, limits=self._settings.limits,
                    other_numbers=other_numbers(self._run.model, sites), settings=self._settings,
                )  # fmt: skip
            except ConfigError:
                most //= 2
            else:
                return

    def at_once(self, sites: Sequence[Site]) -> bool:
        """Whether an update cannot be spread: each layer that turns would make a new version."""
        return self.is_known and any(not site.factored for site in sites)

    def together(self, sites: Sequence[Site], decisions: Sequence[int]) -> list[int]:
        """Decisions in which a layer turns low-rank only where at least half of the dense ones do.

        After two such rounds only where all do. A rule that promises something of the whole model
        would break its word, and goes on as it decided.

        Args:
            sites: All layers.
            decisions: Of each its new rank, or ``KEEP``.
        """
        dense = [i for i, site in enumerate(sites) if not site.factored]
        turning = {i for i in dense if decisions[i] != KEEP}
        enough = len(dense) / 2 if self._rounds < _ROUNDS_IN_PART else len(dense)
        free = not self.is_known or self._rounds == 0 or self._settings.rank.sees_all_layers
        if free or len(turning) >= enough:
            turning = set()
        self.waiting = [sites[i].name for i in sorted(turning)]
        return [KEEP if i in turning else rank for i, rank in enumerate(decisions)]

    def update_ended(self, sites: Sequence[Site]) -> None:
        """Count the rounds in which layers turned."""
        self._rounds += bool(self._dense - {site.name for site in sites if not site.factored})
        self._warn_if_near_the_limit()

    def _warn_if_near_the_limit(self) -> None:
        known = self._versions_before.items()
        counts = [n for frame, n in versions().items() if (frame, n) not in known]
        if self._warned or not counts:
            return
        most, limit = max(counts), int(torch._dynamo.config.recompile_limit)
        if most < limit - _VERSIONS_LEFT:
            return
        self._warned = True
        warnings.warn(
            f"AdaptiveLowRank: torch has compiled the model {most} times. After {limit} "
            "versions (torch._dynamo.config.recompile_limit) it goes on uncompiled. A cut needs no "
            "new version; layers that turn low-rank, evaluation and other shapes of inputs do. "
            'Raise the limit, or find the reason with TORCH_LOGS="recompiles"',
            OrthotrainWarning,
            stacklevel=2,
        )

    def notes(self) -> list[str]:
        """Which layers wait for others."""
        if not self.waiting:
            return []
        return [
            f"compiled: {', '.join(self.waiting)} could be low-rank by now; they stay dense until "
            "others turn with them, since torch compiles the model anew then"
        ]

    def state_dict(self) -> dict[str, Any]:
        """Whether it is compiled, how often layers turned, which were dense as an update began."""
        return {
            "compiled": self.is_known, "rounds": self._rounds, "dense": sorted(self._dense),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any], sites: Sequence[Site]) -> None:
        """Take back what ``state_dict`` gave."""
        self.is_known = bool(state.get("compiled", False))  # older states have neither
        self._rounds = int(state.get("rounds", 0))
        self._dense = set(state.get("dense", ()))
        self.set_rungs(sites)

    def detach(self) -> None:
        """Leave the model without the hook."""
        if self._registered is not None:
            self._registered.remove()


class _ModelHook(CompiledHook):
    """Tells of passes without gradients, too, which may come when training is over."""

    def __init__(self, model: nn.Module | None = None, told: Uncompiled | None = None) -> None:
        super().__init__(model)
        self._told = None if told is None else weakref.ref(told)

    def __call__(self, model: nn.Module, inputs: object) -> None:
        super().__call__(model, inputs)
        if torch.compiler.is_compiling() or self._told is None or torch.is_grad_enabled():
            return
        if (told := self._told()) is not None:
            told.evaluated()
