"""Steps of factors made longer: the executed update is scaled, the groups stay as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orthotrain.lowrank.sites import Site

# Every entry of their update is about as large as the learning rate, whatever the gradient. By
# the name of a class in the optimizer's ancestry, so that no other library is imported. Not
# named: those whose update is in proportion to the gradient (SGD), to the size of the weight
# (Adafactor, LAMB, LARS) or orthogonalized as a whole (Muon). These move a product as far.
_NORMALIZED: Final = frozenset(
    {"Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop", "Lion"}
)


class StepScale:
    """Multiplies what the optimizer's step did to cores and pairs.

    A step of size ``lr`` in every entry moves a dense ``m x n`` weight by ``lr sqrt(m n)``, and a
    core between orthonormal bases by ``lr k``. Decoupled weight decay is left as it is.

    Args:
        sites: The layers.
        core: Factor for cores, or ``"auto"``: ``sqrt(m n) / k`` where the optimizer normalizes
            its steps entry by entry, else 1.
        pair: Factor for pairs.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        optimizer: Optimizer,
        *,
        core: float | Literal["auto"],
        pair: float,
    ) -> None:
        self._sites = list(sites)
        self._core = core if core != "auto" or normalizes(optimizer) else 1.0
        self._pair = pair
        self._before: list[tuple[nn.Parameter, Tensor, float]] = []

    def factor(self, site: Site) -> float:
        """What this site's steps are multiplied by."""
        if not site.factored:
            return 1.0
        if site.trains_bases:
            return self._pair
        if self._core == "auto":
            return math.sqrt(site.layout.m * site.layout.n) / site.rank
        return self._core

    def step_begins(self) -> None:
        """Remember what is about to be changed."""
        scaled = [(site.parameter, self.factor(site)) for site in self._sites]
        self._before = [
            (parameter, parameter.detach().clone(), factor)
            for parameter, factor in scaled
            if factor != 1.0 and parameter.grad is not None
        ]

    @torch.no_grad()
    def step_ended(self, optimizer: Optimizer) -> None:
        """Make the step that was done longer or shorter."""
        if not self._before:
            return
        decay = {id(p): _decoupled_decay(g) for g in optimizer.param_groups for p in g["params"]}
        for parameter, before, factor in self._before:
            parameter.sub_(before).mul_(factor).add_(before)
            decayed = decay.get(id(parameter), 0.0)
            if decayed:
                parameter.add_(before, alpha=(factor - 1.0) * decayed)
        self._before = []


def normalizes(optimizer: Optimizer) -> bool:
    """Whether every entry of an update is about as large as the learning rate."""
    return any(kind.__name__ in _NORMALIZED for kind in type(optimizer).__mro__)


def _decoupled_decay(group: dict[str, object]) -> float:
    """By which share of itself a step shrinks each weight of a group, whatever the gradient."""
    if not group.get("decoupled_weight_decay", False):
        return 0.0
    rate, decay = group.get("lr", 0.0), group.get("weight_decay", 0.0)
    return float(rate) * float(decay)  # type: ignore[arg-type]  # numbers, or tensors of one
