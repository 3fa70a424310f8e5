"""How one site changes: new factors, and the optimizer's state in their coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from orthotrain.layers import Bases
from orthotrain.layers._factors import (
    hold_dense_,
    hold_factors_,
    hold_pair_,
    is_factored,
    low_rank_class_of,
)
from orthotrain.layers._parameters import resize_parameter_
from orthotrain.linalg._inputs import result_dtype
from orthotrain.linalg.factor_pair import balanced_pair
from orthotrain.linalg.matrices import WeightLayout
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import Cut
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.lowrank.sites import Site
from orthotrain.methods import Run
from orthotrain.methods.basis_change import BasisChange, CoordinateChange, Rule
from orthotrain.methods.optimizer_state import StateMode, resize
from orthotrain.methods.pair_change import PairCut, PairSwitch


@dataclass(frozen=True)
class Change:
    """What one update did to one site.

    Attributes:
        switched: Whether the site was dense before.
        rank: Its rank now.
        rank_before: Its rank before; the full one where it was dense.
        kept_energy: Energy kept, as a share of what is there and what was ever cut.
    """

    switched: bool
    rank: int
    rank_before: int
    kept_energy: float


def change_site_(
    site: Site,
    layer: LayerHistory,
    cut: Cut,
    run: Run,
    *,
    settings: LowRankSettings,
) -> Change:
    """Take a site to a new rank, its history and the optimizer's state with it.

    Args:
        site: Dense or factored.
        layer: Its history.
        cut: Of its core or dense weight, to the new rank.
        run: With the optimizers and the step.
        settings: With the form a dense site takes (a factored one keeps the form it has), how the
            optimizer's state follows, and whether energies are in a metric.
    """
    rank, rank_before, switched = cut.p.shape[-1], site.rank, not site.factored
    kept_energy = layer.energy_was_cut(
        cut.kept.tolist(), cut.lost.tolist(), in_metric=settings.importance != "weight"
    )
    if switched:
        layer.switched_at = run.step
    cut_trained_site_(
        site, (cut.p, cut.s, cut.qh), run.owners().get(site.parameter),
        mode=settings.optimizer_state, bases=settings.bases,
    )  # fmt: skip
    return Change(switched, rank, rank_before, kept_energy)


def cut_trained_site_(
    site: Site,
    kept: tuple[Tensor, Tensor, Tensor],
    optimizer: Optimizer | None,
    *,
    mode: StateMode = "rotate",
    bases: Bases = "frozen",
) -> None:
    """``cut_site_``, and the state of the optimizer that trains the site, if any, follows."""
    change = _change_of_state(site, *kept, bases)
    cut_site_(site, *kept, bases=bases)
    if optimizer is not None:
        resize(
            optimizer, site.parameter, change,
            new_shape=site.parameter.shape, mode=mode, name=site.name,
        )  # fmt: skip


def _change_of_state(
    site: Site, p: Tensor, s: Tensor, qh: Tensor, bases: Bases
) -> CoordinateChange:
    """How the optimizer's state follows; read before the site changes."""
    if site.trains_bases:
        p, qh = _in_full(site, p, qh)
        return PairCut(*site.pair, p, s, qh)
    if site.factored:
        return BasisChange(left=p, right=qh.mT)
    trained = bases == "trained"
    switch = PairSwitch(p, s, qh) if trained else BasisChange(left=p, right=qh.mT)
    return _InputsFirst(switch, site.layout) if site.layout.inputs_first else switch


@dataclass(frozen=True, eq=False)
class _InputsFirst(CoordinateChange):
    """A change of a weight that is stored inputs first: its state is read as its matrices are."""

    change: CoordinateChange
    layout: WeightLayout

    @property
    def before(self) -> tuple[int, ...]:
        return self.layout.shape

    @property
    def after(self) -> tuple[int, ...]:
        return self.change.after

    def fits(self, shape: Sequence[int]) -> bool:
        return tuple(shape) == self.before

    def moved(self, x: Tensor, rule: Rule) -> Tensor:
        return self.change.moved(self.layout.matrix(x), rule)

    def leading(self, x: Tensor) -> Tensor:
        return self.change.leading(self.layout.matrix(x))


def _in_full(site: Site, p: Tensor, qh: Tensor) -> tuple[Tensor, Tensor]:
    """Singular vectors of the weight, from those of its core where it is factored.

    Multiplied in float32 for weights of float32 or less: each turn adds some 1e-7, and up to 5e-6
    where a core was decomposed in float32, to what the bases lack of being orthonormal. They turn
    only where something is cut.
    """
    if not site.factored:
        return p, qh
    u, _, vh = site.factors
    dtype = result_dtype(site.parameter.dtype)
    return u.to(dtype) @ p.to(dtype), qh.to(dtype) @ vh.to(dtype)


def undo_of(sites: Sequence[Site]) -> Callable[[], None]:
    """What takes sites back to the form and values that they have now."""
    held = [
        (
            site,
            site.bases if site.factored else None,
            site.parameter.detach().clone(),
            site.parameter.grad,
            site.factors if site.factored and not site.trains_bases else None,
        )
        for site in sites
    ]

    def undo() -> None:
        for site, form, value, gradient, factors in held:
            parameter = site.parameter
            resize_parameter_(parameter, value)
            parameter.grad = gradient
            for module, weight in site.owners:
                if form is None and is_factored(module, weight):
                    hold_dense_(module, weight)
                elif factors is not None:
                    low_rank_class = low_rank_class_of(module)
                    assert low_rank_class is not None
                    hold_factors_(module, weight, low_rank_class, factors.u, factors.vh)

    return undo


@torch.no_grad()
def cut_site_(site: Site, p: Tensor, s: Tensor, qh: Tensor, *, bases: Bases = "frozen") -> None:
    """Take the leading part ``p @ diag(s) @ qh`` of a decomposition as the new factors.

    Of a dense weight these are the factors themselves, in the form that ``bases`` names; of a
    core they turn ``u`` and ``vh``. A pair becomes a balanced pair. Tied owners share the factors.
    """
    trained = site.trains_bases or (not site.factored and bases == "trained")
    p, qh = _in_full(site, p, qh)
    parameter = site.parameter
    resize_parameter_(parameter, balanced_pair(p, s, qh) if trained else torch.diag_embed(s))
    u, vh = (t.to(parameter.dtype).contiguous().clone() for t in (p, qh))
    for module, weight in site.owners:
        low_rank_class = low_rank_class_of(module)
        assert low_rank_class is not None
        if trained:
            hold_pair_(module, weight, low_rank_class)
        else:
            hold_factors_(module, weight, low_rank_class, u, vh)
