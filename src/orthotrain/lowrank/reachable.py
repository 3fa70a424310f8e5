"""Whether a rank rule can be met at all, told from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import CutSettings, candidate_of
from orthotrain.lowrank.rank_rule import Limits, RankRule
from orthotrain.lowrank.sites import Refusal, Site, numbers_outside


def require_reachable(
    rule: RankRule,
    sites: Sequence[Site],
    *,
    limits: Limits,
    other_numbers: int,
    settings: CutSettings,
) -> None:
    """Tell a rule that cannot be met from shapes alone, before anything is seen or trained.

    Args:
        rule: The rank rule.
        sites: All layers.
        limits: Guards on every cut.
        other_numbers: Stored numbers of the model outside the sites.
        settings: What decides how a site is seen.

    Raises:
        ConfigError: Even the smallest ranks exceed what the rule allows.
    """
    shapes = [
        candidate_of(
            site, torch.ones(site.layout.blocks, site.rank), LayerHistory(),
            within_reach=True, settings=settings,
        )
        for site in sites
    ]  # fmt: skip
    floors = [
        min(limits.floor(shape.full_rank), site.rank)
        for shape, site in zip(shapes, sites, strict=True)
    ]
    rule.require_reachable(shapes, min_ranks=floors, other_numbers=other_numbers)


def require_reachable_in(
    model: nn.Module,
    rule: RankRule,
    sites: Sequence[Site],
    refusals: Sequence[Refusal],
    *,
    limits: Limits,
    settings: CutSettings,
) -> None:
    """The same of a whole model; the error names the largest layers that stand in the way.

    Args:
        model: The inner model.
        rule: The rank rule.
        sites: All layers.
        refusals: Layers that stay as they are, and why.
        limits: Guards on every cut.
        settings: What decides how a site is seen.

    Raises:
        ConfigError: Even the smallest ranks exceed what the rule allows.
    """
    rest = numbers_outside(model, sites)
    try:
        require_reachable(
            rule, sites, limits=limits, other_numbers=sum(rest.values()), settings=settings
        )
    except ConfigError as error:
        reasons = {refusal.name: f" ({refusal.reason})" for refusal in refusals}
        largest = sorted(rest.items(), key=lambda each: -each[1])[:4]
        named = ", ".join(
            f"{name or 'the model'}{reasons.get(name, '')}: {n:,}" for name, n in largest if n
        )
        raise ConfigError(f"{error}{f'. Largest of the rest: {named}' * bool(named)}") from error
