"""Truncate a trained model at once: look, decide and change, with no training around it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.layers import stored_numbers
from orthotrain.lowrank.change import cut_site_
from orthotrain.lowrank.decide import decided_ranks
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import candidate_of, decomposed, spectrum
from orthotrain.lowrank.rank_rule import Limits, RankRule
from orthotrain.lowrank.rules import chosen_rule
from orthotrain.lowrank.sites import Selection, Site, find_sites, other_numbers, require_sites
from orthotrain.methods.select import unwrap

_OPEN = Limits(max_drop=1.0, min_rank_fraction=0.0)


def compress(  # noqa: PLR0913  # a rule and its three short forms
    model: nn.Module,
    *,
    rank: RankRule | None = None,
    rank_rtol: float | None = None,
    energy: float | None = None,
    stored_budget: float | None = None,
    skip: Sequence[str] = (),
    only_if_cheaper: bool = True,
) -> nn.Module:
    """Truncate a trained model's layers to low rank at once, in place.

    Ranks of convolutions are rounded up to a multiple of 16, as in training.

    Args:
        model: The trained model, dense or low-rank.
        rank: The rank rule: ``Relative(0.1)``, ``Energy(0.9)``, ``StoredBudget(0.5)`` or a
            rule of your own.
        rank_rtol: Short form of ``rank=Relative(...)``.
        energy: Short form of ``rank=Energy(...)``.
        stored_budget: Short form of ``rank=StoredBudget(...)``.
        skip: ``fnmatch`` patterns on qualified module names that stay as they are.
        only_if_cheaper: Leave a layer as it is where its factors hold no fewer numbers.

    Returns:
        The same model with low-rank layers.

    Raises:
        ConfigError: No rank rule or two of them, a value outside its range, a pattern that
            matches nothing, a budget that cannot be met, or no layer that can be converted.
        NonFiniteError: A weight holds NaN or infinity; the message names the layer.
    """
    rule = chosen_rule(rank, rank_rtol=rank_rtol, energy=energy, stored_budget=stored_budget)
    if isinstance(skip, str):
        raise ConfigError(f"compress needs skip to be a sequence of patterns, got {skip!r}")
    inner = unwrap(model)
    sites, refusals = find_sites(inner, Selection(skip=tuple(skip)))
    require_sites(sites, refusals, "compress")
    new = LayerHistory()  # nothing was cut or planned before
    options = {"within_reach": True, "only_if_cheaper": only_if_cheaper}
    candidates = [candidate_of(site, spectrum(site), new, **options) for site in sites]
    others = other_numbers(inner, sites)
    ranks = decided_ranks(candidates, rule=rule, limits=_OPEN, other_numbers=others)
    for site, k in zip(sites, ranks, strict=True):
        if not only_if_cheaper or _stored(site, k) < _stored(site):
            p, s, qh = decomposed(site)
            cut_site_(site, p[..., :k], s[..., :k], qh[..., :k, :])
    return model


def _stored(site: Site, rank: int | None = None) -> int:
    """Numbers that hold a site's weight, now or at a rank."""
    if rank is None and not site.factored:
        return site.dense_numbers
    layout = site.layout
    return layout.blocks * stored_numbers(layout.m, layout.n, site.rank if rank is None else rank)
