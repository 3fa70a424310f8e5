"""What an update decides: which layers it reaches, and the rank that each of them gets.

Source: Coquelin et al., arXiv:2401.08505. What goes beyond it is said where it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from orthotrain.layers import Bases, break_even_fraction, stored_numbers
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.rank_rule import Candidate, Limits, RankRule
from orthotrain.lowrank.settings import LowRankSettings
from orthotrain.lowrank.sites import Site

KEEP: Final = -1  #: a decision: leave this site as it is

# Shares such as 0.7 of 10 must not round up because 1 - 0.7 is a little more than 0.3.
_ROUNDING = 1e-9


def reached(
    sites: Sequence[Site],
    layers: Mapping[str, LayerHistory],
    *,
    update: int,
    layer_fraction: float,
    settling: bool,
) -> set[int]:
    """Indices of the sites that this update may cut; those that wait have waited once more."""
    count = len(sites)
    if settling:
        near = [i for i, s in enumerate(sites) if s.factored or layers[s.name].settled]
    else:
        tail = tail_length(update, layers=count, layer_fraction=layer_fraction)
        near = list(range(count - tail, count))
    return {
        i for i in near if not layers[sites[i].name].waits() and sites[i].parameter.requires_grad
    }


def decide(
    sites: Sequence[Site],
    layers: Mapping[str, LayerHistory],
    settings: LowRankSettings,
    candidates: Mapping[int, Candidate],
    *,
    other_numbers: int,
    settling: bool,
) -> list[int]:
    """The new rank of each site, or ``KEEP``.

    What a layer within reach should have is remembered as its planned rank, whether or not it
    pays yet. A low-rank layer that keeps its rank stays as it is: its bases turn where it is cut.

    Args:
        sites: All sites, in model order.
        layers: Their histories.
        settings: With the rank rule and the guards.
        candidates: What was seen, by index of the site.
        other_numbers: Stored numbers of the model outside the sites, for the rule.
        settling: Whether each layer switches by itself once its basis has settled.
    """
    everything = not settings.only_if_cheaper
    at_once = everything and not settling
    # Where nothing is within reach nothing was seen, and there is nothing to decide.
    ranks = candidates and decided_ranks(
        list(candidates.values()), rule=settings.rank, limits=settings.limits,
        other_numbers=other_numbers,
    )  # fmt: skip
    planned = {i: r for i, r in zip(candidates, ranks, strict=True) if candidates[i].within_reach}
    decisions = []
    for i, site in enumerate(sites):
        layout, decision = site.layout, KEEP
        if i in planned:
            rank = layers[site.name].planned_rank = planned[i]
            if site.factored:
                decision = rank if rank < site.rank else KEEP  # nothing cut, nothing turned
            elif everything or pays(layout.m, layout.n, rank, settings.bases):
                decision = rank
        elif at_once and not site.factored and site.parameter.requires_grad:
            decision = layout.full_rank
        decisions.append(decision)
    return decisions


def decided_ranks(
    candidates: Sequence[Candidate],
    *,
    rule: RankRule,
    limits: Limits,
    other_numbers: int = 0,
    at_least: Sequence[int] = (),
) -> list[int]:
    """The rank of each candidate after this update; its ceiling where it is out of reach.

    Args:
        candidates: In model order.
        rule: How ranks follow from spectra.
        limits: Guards on every cut.
        other_numbers: Stored numbers of the model outside the candidates, for the rule.
        at_least: A rank for each candidate below which it does not fall, beside the guards.
    """
    floors = [limits.floor(c.full_rank) for c in candidates]
    if at_least:
        floors = [max(both) for both in zip(floors, at_least, strict=True)]
    lowest = [min(floor, c.spectrum.shape[-1]) for floor, c in zip(floors, candidates, strict=True)]
    wanted = rule.ranks(candidates, min_ranks=lowest, other_numbers=other_numbers)
    ranks = []
    for rank, floor, candidate in zip(wanted, floors, candidates, strict=True):
        slowest = math.ceil(candidate.ceiling * (1 - limits.max_drop) - _ROUNDING)
        limited, wanted_at_least = candidate.rounded(max(rank, slowest, floor)), max(rank, floor)
        if limited == candidate.ceiling > candidate.rounded(wanted_at_least):
            limited = candidate.next_below()  # max_drop alone would stop it between two multiples
        ranks.append(limited if candidate.within_reach else candidate.ceiling)
    return ranks


def pays(m: int, n: int, rank: int, bases: Bases) -> bool:
    """Whether a factored layer of this rank trains in fewer multiply-adds than a dense one.

    Two trained factors do where they hold fewer numbers; with frozen bases two of the three
    products of a training step are of the small core.
    """
    if bases == "trained":
        return stored_numbers(m, n, rank, bases=bases) < m * n
    return factored_pays(m, n, rank)


def factored_pays(m: int, n: int, rank: int) -> bool:
    """``pays`` of frozen bases."""
    return rank <= break_even_fraction(m, n) * min(m, n)


def tail_length(update: int, *, layers: int, layer_fraction: float) -> int:
    """How many of the last layers the ``update``-th update (from one) reaches."""
    return min(layers, update * _reach(layers, layer_fraction))


def updates_to_reach_all(*, layers: int, layer_fraction: float) -> int:
    """The first update that reaches every layer."""
    return math.ceil(layers / _reach(layers, layer_fraction))


def _reach(layers: int, layer_fraction: float) -> int:
    """How much further each update reaches; published, but for a fraction of one: all of them."""
    return layers if layer_fraction == 1 else max(1, int(layer_fraction * (layers - 1)))
