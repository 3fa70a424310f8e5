"""The sites of a run as its model is now: layers come, go, are replaced, frozen and unfrozen."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, replace

from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.layers._factors import weight_parameter
from orthotrain.lowrank.gradient_hooks import unseen_hook
from orthotrain.lowrank.no_form import KINDS
from orthotrain.lowrank.sites import Refusal, Selection, Site, find_sites, require_supported
from orthotrain.methods import Run
from orthotrain.methods.select import named_modules_clean, select_parameters


@dataclass(frozen=True)
class Present:
    """What a model holds now, beside the sites that were known.

    Attributes:
        kept: The known sites that are still there, the same objects, in the order they had.
        new: Sites that were not known.
        refusals: Layers that stay as they are.
    """

    kept: list[Site]
    new: list[Site]
    refusals: list[Refusal]

    def together(self, model: nn.Module) -> list[Site]:
        """Kept and new sites in model order."""
        order = {id(module): i for i, (_, module) in enumerate(named_modules_clean(model))}
        return sorted([*self.kept, *self.new], key=lambda site: order[id(site.owners[0][0])])


def look_again(
    run: Run, selection: Selection, known: Sequence[Site], *, changing: bool = False
) -> Present:
    """Search a run's model once more, with the selection of ``attach``.

    A known layer that was frozen is kept: it is left alone as long as it requires no gradient.
    A pattern whose layers are gone matches nothing now, which is no error here. Right before a
    change (``changing``), a hook on a gradient that was never seen to run keeps a layer dense.
    """
    only = _matching(run.model, selection.only)
    still = replace(selection, skip=_matching(run.model, selection.skip), only=only)
    trained = {id(parameter) for parameter in run.owners()}
    found, refusals = find_sites(run.model, still, trained=trained)
    if selection.only and not only:
        found = []
    if changing:
        waiting = unseen_hooks(found)
        found = [site for site in found if site.name not in waiting]
        refusals += [Refusal(name, never_seen(hook)) for name, hook in waiting.items()]
    ours = {_identity(site): site for site in known}
    there = {_identity(site) for site in found}
    modules = {id(module) for _, module in named_modules_clean(run.model)}
    kept = [site for key, site in ours.items() if key in there or _stays(site, modules)]
    names = {site.name for site in kept}
    new = []
    for site in found:
        if _identity(site) in ours:
            continue
        try:
            shape = site.layout.factor_shapes(1)[1]
            owner = run.optimizer_of(site.parameter)
            require_supported(owner, site, shape=shape, what="cannot convert")
        except ConfigError as error:
            refusals.append(Refusal(site.name, str(error)))
        else:
            new.append(site)
    return Present(kept, new, [each for each in refusals if each.name not in names])


def left_by_settings(run: Run, selection: Selection) -> set[str]:
    """Layers that stay dense by a setting alone, and those that do not: all that could change."""
    everything = Selection(
        shared_attention_basis=selection.shared_attention_basis, max_aspect=math.inf, also=KINDS
    )
    trained = {id(parameter) for parameter in run.owners()}
    return {site.name for site in find_sites(run.model, everything, trained=trained)[0]}


def never_seen(hook: str) -> str:
    """What is said of a layer with a hook that did not run yet."""
    return (
        f"its gradient has a hook, {hook}, that did not run yet; where it needs the weight's "
        "shape, the layer stays dense"
    )


def unseen_hooks(sites: Sequence[Site]) -> dict[str, str]:
    """Hooks on gradients of dense weights that did not run yet, by layer."""
    dense = [site for site in sites if not site.factored]
    return {s.name: hook for s in dense if (hook := unseen_hook(s.parameter)) is not None}


def _identity(site: Site) -> tuple[object, ...]:
    owners = frozenset((id(module), weight) for module, weight in site.owners)
    return site.name, owners, id(weight_parameter(*site.owners[0])), site.layout


def _stays(site: Site, modules: Set[int]) -> bool:
    """Whether a site that cannot be cut now is still there: frozen, or low-rank already."""
    if any(id(m) not in modules or weight_parameter(m, w) is None for m, w in site.owners):
        return False
    return site.factored or not site.parameter.requires_grad


def _matching(model: nn.Module, patterns: Collection[str]) -> list[str]:
    found = []
    for pattern in patterns:
        try:
            select_parameters(model, [pattern])
        except ConfigError:
            continue
        found.append(pattern)
    return found
