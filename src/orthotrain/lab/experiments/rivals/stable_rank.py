"""Cuttlefish-like: two factors once the stable ranks stop changing, at ranks that follow them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotrain.lab.experiments.branches.plan import Plan
from orthotrain.lab.experiments.rivals.config import RivalSettings
from orthotrain.lowrank import AdaptiveLowRank
from orthotrain.lowrank.rank_rule import Candidate, RankRule
from orthotrain.lowrank.sites import Selection, find_sites
from orthotrain.methods.protocol import Bound, Method, Phase, Run


@dataclass
class Seen:
    """What was seen of the stable ranks so far.

    Attributes:
        first: Of the initial weights, by layer.
        last: At the last look.
        switched: Whether the two factors have begun.
    """

    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    switched: bool = False


@dataclass(frozen=True)
class ScaledStableRank(RankRule):
    """Full ranks until the stable ranks settle, then once ``full * stable / stable at first``.

    Attributes:
        settled: Largest mean relative change between two looks.
        seen: What earlier looks saw; :class:`KeepSeen` keeps it over a resume.
    """

    settled: float
    seen: Seen

    def ranks(
        self, layers: Sequence[Candidate], *, min_ranks: Sequence[int], other_numbers: int
    ) -> list[int]:
        """The ceiling of each layer, or its scaled stable rank at the switch."""
        seen, keep = self.seen, [layer.ceiling for layer in layers]
        now = {layer.name: stable_rank(layer.spectrum) for layer in layers}
        before, seen.last = seen.last, now
        if seen.switched or not before:
            return keep
        if fmean(abs(now[name] - last) / last for name, last in before.items()) > self.settled:
            return keep
        seen.switched = True
        scaled = [layer.full_rank * now[layer.name] / seen.first[layer.name] for layer in layers]
        return [
            max(least, min(ceiling, round(rank)))
            for least, ceiling, rank in zip(min_ranks, keep, scaled, strict=True)
        ]


def stable_rank(spectrum: Tensor) -> float:
    """Sum of squares over the largest square, the mean over blocks.

    Args:
        spectrum: ``(blocks, r)`` singular values, the largest first.
    """
    squares = spectrum.double().square()
    tiny = torch.finfo(squares.dtype).tiny
    return float((squares.sum(-1) / squares[:, 0].clamp_min(tiny)).clamp_min(tiny).mean())


@dataclass(frozen=True)
class KeepSeen(Method):
    """Measures the initial weights, and keeps what a rule has seen over a resume.

    Attributes:
        seen: Of the rule.
    """

    phase: ClassVar[Phase] = Phase.WATCH
    name: ClassVar[str] = "stable_ranks"

    seen: Seen

    def bind(self, run: Run) -> Bound:
        """Look at the initial weights."""
        for site in find_sites(run.model, Selection(dense_last=True))[0]:
            matrix = site.matrix.double().reshape(-1, *site.matrix.shape[-2:])
            self.seen.first[site.name] = stable_rank(torch.linalg.svdvals(matrix))
        return _Keeper(self.seen)


class _Keeper(Bound):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def state_dict(self) -> dict[str, Any]:
        return {name: value if name == "switched" else dict(value)
                for name, value in vars(self._seen).items()}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self._seen).update(state)


def cuttlefish_like(
    model: nn.Module, settings: RivalSettings, *, total_steps: int, seed: int
) -> Plan:
    """Cuttlefish-like: dense until the stable ranks settle, then two factors of the weights.

    As Cuttlefish (Wang et al. 2023, arXiv:2305.02538), but that all layers are looked at in fixed
    intervals, that a mean decides, that no layer is left out by a measured time, and that decay
    is that of the run.
    """
    seen = Seen()
    every = max(1, total_steps // settings.looks)
    cutting = AdaptiveLowRank(
        delay_steps=every,
        every_steps=every,
        rank=ScaledStableRank(settings.settled, seen),
        importance="weight",
        spread=False,
    )
    return Plan((KeepSeen(seen), cutting))
