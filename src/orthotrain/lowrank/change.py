"""How one site changes: new factors, and the optimizer's state in their coordinates."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from orthotrain.layers._factors import hold_factors_, low_rank_class_of, resize_parameter_
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import Decomposition
from orthotrain.lowrank.sites import Site
from orthotrain.methods import Run
from orthotrain.methods.optimizer_state import BasisChange, StateMode, resize


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
    site: Site, layer: LayerHistory, factors: Decomposition, run: Run, *, mode: StateMode
) -> Change:
    """Take a site to a new rank, its history and the optimizer's state with it.

    Args:
        site: Dense or factored.
        layer: Its history.
        factors: ``p, s, qh`` of its core or dense weight: ``p`` and ``qh`` cut to the new rank,
            ``s`` whole, since what is cut has to be known.
        run: With the optimizer and the step.
        mode: How the optimizer's state follows.
    """
    p, s, qh = factors
    rank, rank_before, switched = p.shape[-1], site.rank, not site.factored
    energy = s.square().reshape(site.layout.blocks, -1)
    layer.energy_was_cut(energy[:, rank:].sum(1).tolist())
    kept = float(energy[:, :rank].sum())
    if switched:
        layer.switched_at = run.step
    cut_site_(site, p, s[..., :rank], qh)
    resize(
        run.optimizer, site.parameter, BasisChange(left=p, right=qh.mT),
        new_shape=site.parameter.shape, mode=mode, name=site.name,
    )  # fmt: skip
    kept_energy = kept / max(kept + sum(layer.cut_energy), sys.float_info.min)
    return Change(switched, rank, rank_before, kept_energy)


@torch.no_grad()
def cut_site_(site: Site, p: Tensor, s: Tensor, qh: Tensor) -> None:
    """Take the leading part ``p @ diag(s) @ qh`` of a decomposition as the new factors.

    Of a dense weight these are the factors themselves; of a core they turn ``u`` and ``vh``.
    Tied owners share the factors.
    """
    if site.factored:
        u, _, vh = site.factors
        p, qh = u.to(p) @ p, qh @ vh.to(qh)
    parameter = site.parameter
    resize_parameter_(parameter, torch.diag_embed(s))
    u, vh = (t.to(parameter.dtype).contiguous().clone() for t in (p, qh))
    for module, weight in site.owners:
        low_rank_class = low_rank_class_of(module)
        assert low_rank_class is not None
        hold_factors_(module, weight, low_rank_class, u, vh)
