"""The layers that rivals act on: those that adaptive low-rank training takes, so all act alike."""

from __future__ import annotations

from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.lowrank.sites import Selection, find_sites, require_sites


def linear_layers(model: nn.Module, *, rival: str) -> dict[str, nn.Linear]:
    """The linear layers by name, in model order; the last layer and tied weights are left out.

    Args:
        model: Dense.
        rival: Who asks, for messages.

    Raises:
        ConfigError: There are none, or a layer of another kind that the rival has no form for.
    """
    sites, refusals = find_sites(model, Selection(dense_last=True))
    require_sites(sites, refusals, rival)
    found = {}
    for site in sites:
        module, weight = site.owners[0]
        if type(module) is not nn.Linear or weight != "weight":
            raise ConfigError(
                f"{rival} takes nn.Linear alone; {site.name} is a {type(module).__name__} of "
                f"shape {tuple(site.layout.shape)}. Choose another rival for this network, such "
                "as default, which takes it"
            )
        found[site.name] = module
    return found


def rank_of(layer: nn.Linear, fraction: float) -> int:
    """A share of the smaller side, at least 1."""
    return max(1, round(fraction * min(layer.weight.shape)))
