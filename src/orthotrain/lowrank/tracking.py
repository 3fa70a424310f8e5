"""Copies of a model (an average of its weights) follow its changes of structure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

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
        ``u^T u_copy core_copy vh_copy vh^T``.
        """
        if not site.factored:
            return
        u, _, vh = site.factors
        owners = self._owners[id(site)]
        module, weight = owners[0]
        parameter = weight_parameter(module, weight)
        low_rank_class = low_rank_class_of(module)
        assert parameter is not None
        assert low_rank_class is not None
        exact = working_dtype(parameter)
        left, right = u.to(parameter.device, exact).mT, vh.to(parameter.device, exact).mT
        if is_factored(module, weight):
            assert isinstance(module, LowRankModule)
            own_u, own_core, own_vh = (t.to(exact) for t in module.factors(weight))
            core = (left @ own_u) @ own_core @ (own_vh @ right)
        else:
            core = left @ site.layout.matrix(parameter).to(exact) @ right
        resize_parameter_(parameter, core)
        for each, name in owners:
            frozen = (t.to(parameter).clone() for t in (u, vh))
            hold_factors_(each, name, low_rank_class, *frozen)
