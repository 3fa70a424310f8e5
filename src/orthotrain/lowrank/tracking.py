"""Copies of a model (an average of its weights) follow its changes of structure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from orthotrain.errors import ConfigError
from orthotrain.layers._factors import (
    LowRankModule,
    hold_factors_,
    is_factored,
    low_rank_class_of,
    resize_parameter_,
    weight_parameter,
)
from orthotrain.linalg import working_dtype
from orthotrain.lowrank.sites import Site
from orthotrain.methods.select import named_modules_clean


class FollowingCopy:
    """A copy of a model whose layers take over the basis of the original's."""

    def __init__(self, copy: nn.Module, model: nn.Module, sites: Sequence[Site]) -> None:
        theirs = dict(named_modules_clean(copy))
        names = {id(module): name for name, module in named_modules_clean(model)}
        self._owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for site in sites:
            owners = []
            for module, weight in site.owners:
                name = names[id(module)]
                twin = theirs.get(name)
                if twin is None or low_rank_class_of(twin) is not low_rank_class_of(module):
                    raise ConfigError(
                        f"track needs a copy of the attached model, got one without a "
                        f"{type(module).__name__} named {name!r}; pass copy.deepcopy(model) or "
                        "torch.optim.swa_utils.AveragedModel(model)"
                    )
                owners.append((twin, weight))
            self._owners[id(site)] = owners

    @torch.no_grad()
    def follow(self, site: Site) -> None:
        """Take over the site's basis; the copy's own weight is projected into it.

        ``core_copy <- u^T W_copy vh^T``, which for a low-rank copy is
        ``u^T u_copy core_copy vh_copy vh^T``. A copy in that very basis is left as it is, bit
        for bit.
        """
        if not site.factored:
            return
        u, _, vh = site.factors
        frozen: dict[int, tuple[Tensor, Tensor]] = {}  # one pair for all that share a core
        for module, weight in self._owners[id(site)]:
            parameter, low_rank_class = weight_parameter(module, weight), low_rank_class_of(module)
            assert parameter is not None
            assert low_rank_class is not None
            if id(parameter) not in frozen:
                if _has_basis(module, weight, u, vh):
                    continue
                resize_parameter_(parameter, _projected(module, weight, site))
                frozen[id(parameter)] = (u.to(parameter).clone(), vh.to(parameter).clone())
            hold_factors_(module, weight, low_rank_class, *frozen[id(parameter)])


def _has_basis(module: nn.Module, weight: str, u: Tensor, vh: Tensor) -> bool:
    """Whether a weight is held in this very basis already."""
    if not is_factored(module, weight):
        return False
    assert isinstance(module, LowRankModule)
    own_u, _, own_vh = module.factors(weight)
    return torch.equal(own_u, u.to(own_u)) and torch.equal(own_vh, vh.to(own_vh))


def _projected(module: nn.Module, weight: str, site: Site) -> Tensor:
    """The core of a copy's weight in the site's basis, in the working precision."""
    parameter = weight_parameter(module, weight)
    assert parameter is not None
    exact = working_dtype(parameter)
    u, _, vh = (t.to(parameter.device, exact) for t in site.factors)
    if not is_factored(module, weight):
        return u.mT @ site.layout.matrix(parameter).to(exact) @ vh.mT
    assert isinstance(module, LowRankModule)
    own_u, own_core, own_vh = (t.to(exact) for t in module.factors(weight))
    return (u.mT @ own_u) @ own_core @ (own_vh @ vh.mT)
