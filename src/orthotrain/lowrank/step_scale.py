"""Steps of factors made longer: the executed update is scaled, the groups stay as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orthotrain.errors import ConfigError
from orthotrain.lowrank.sites import Site
from orthotrain.methods import Run
from orthotrain.methods._optimizer import groups_of

# Every entry of their update is about as large as the learning rate, whatever the gradient. By
# the name of a class in the optimizer's ancestry, so that no other library is imported. Not
# named: those whose update is in proportion to the gradient (SGD), to the size of the weight
# (Adafactor, LAMB, LARS) or orthogonalized as a whole (Muon). These move a product as far.
_NORMALIZED: Final = frozenset(
    {"Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop"}
)


class StepScale:
    """Multiplies what the optimizer's step did to cores and pairs.

    A step of size ``lr`` in every entry moves a dense ``m x n`` weight by ``lr sqrt(m n)``, and a
    core between orthonormal bases by ``lr k``. Decoupled weight decay is left as it is.

    Args:
        sites: The layers.
        run: With the optimizers that train them.
        core: Factor for cores, or ``"auto"``: ``sqrt(m n) / k`` where the optimizer normalizes
            its steps entry by entry, else 1.
        pair: Factor for pairs.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        run: Run,
        *,
        core: float | Literal["auto"],
        pair: float,
    ) -> None:
        self._sites = sites  # which come and go
        self._run = run
        self._core = core
        self._pair = pair
        self._before: list[tuple[nn.Parameter, Tensor, float]] = []
        self._began = False

    def _factor(self, site: Site, optimizer: Optimizer) -> float:
        """What the steps that an optimizer takes for a site are multiplied by."""
        if not site.factored:
            return 1.0
        if site.trains_bases:
            return self._pair
        if self._core != "auto":
            return self._core
        if not normalizes(optimizer):
            return 1.0
        return math.sqrt(site.layout.m * site.layout.n) / site.rank

    def step_begins(self) -> None:
        """Remember what is about to be changed."""
        self._before = [
            (parameter, parameter.detach().clone(), factor) for parameter, factor in self._scaled()
        ]
        self._began = True

    def _scaled(self) -> list[tuple[nn.Parameter, float]]:
        """What this step is to change by more or less than the optimizer does."""
        found = []
        for optimizer in self._run.stepping:
            held = groups_of([optimizer]) if self._run.has_several else None
            sites = (s for s in self._sites if held is None or s.parameter in held)
            found += [(site.parameter, self._factor(site, optimizer)) for site in sites]
        return [(parameter, factor) for parameter, factor in found if factor != 1.0]

    @torch.no_grad()
    def step_ended(self) -> None:
        """Make the step that was done longer or shorter.

        Raises:
            ConfigError: Nobody told when it began.
        """
        if not self._began and self._scaled():
            raise ConfigError(
                "AdaptiveLowRank scales the steps of its factors, so it has to see them begin: "
                "with auto=False call handle.before_step() before optimizer.step(), or set "
                "core_step=1.0 and factor_step=1.0"
            )
        self._began = False
        groups = self._run.groups() if self._before else {}
        for parameter, before, factor in self._before:
            if parameter.grad is None:
                continue
            parameter.sub_(before).mul_(factor).add_(before)
            decayed = _decoupled_decay(groups[parameter]) if parameter in groups else 0.0
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
