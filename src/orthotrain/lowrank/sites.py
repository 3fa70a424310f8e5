"""Which weights of a model can be held low-rank, in which order, and why others cannot."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor, nn
from torch.optim import Optimizer

from orthotrain.errors import ConfigError
from orthotrain.layers import Bases
from orthotrain.layers._factors import (
    Factors,
    LowRankModule,
    holds_pair,
    is_factored,
    low_rank_class_of,
    weight_parameter,
)
from orthotrain.linalg.factor_pair import orthonormal_form
from orthotrain.linalg.matrices import WeightLayout
from orthotrain.lowrank.adapters import adapted
from orthotrain.lowrank.gradient_hooks import hook_that_needs_the_shape, watch_hooks
from orthotrain.lowrank.no_form import (
    TIED_HEAD,
    acts_on_rows,
    is_asked_for,
    is_layer,
    left_as_they_are,
)
from orthotrain.lowrank.settings import MAX_ASPECT
from orthotrain.methods.optimizer_state import check_supported
from orthotrain.methods.select import named_modules_clean, select_modules, select_parameters

# Convolutions of other ranks waste up to 17 % on CPU; rounding up costs nothing.
CONV_RANK_MULTIPLE: Final = 16


@dataclass(eq=False)
class Site:
    """One trained weight that is, or can be, held in factors.

    Attributes:
        name: Qualified name of the first module that owns it; with the weight's own name where
            a module has several.
        owners: Every ``(module, weight name)`` that holds this very Parameter: tied weights.
        layout: How the weight is read as matrices.
        own_multiple: Ranks are rounded up to a multiple of this, for the kind of its layer.
        rung: Ranks are rounded up to a multiple of this, for the run.
    """

    name: str
    layout: WeightLayout
    own_multiple: int
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    rung: int = 1

    @property
    def multiple(self) -> int:
        """Ranks are rounded up to a multiple of this."""
        return math.lcm(self.own_multiple, self.rung)

    @property
    def parameter(self) -> nn.Parameter:
        """The dense weight, the core or the pair: the same object before and after."""
        module, weight = self.owners[0]
        parameter = weight_parameter(module, weight)
        assert parameter is not None
        return parameter

    @property
    def intact(self) -> bool:
        """Whether the weight is a parameter still, a dense one in the shape it had."""
        held = weight_parameter(*self.owners[0])
        return held is not None and (self.factored or held.shape == self.layout.shape)

    @property
    def factored(self) -> bool:
        """Whether the weight is held in factors now."""
        return is_factored(*self.owners[0])

    @property
    def trains_bases(self) -> bool:
        """Whether the weight is held as a pair of trained factors now."""
        return holds_pair(*self.owners[0])

    @property
    def bases(self) -> Bases:
        """The form of its factors; of a dense weight ``"frozen"``."""
        return "trained" if self.trains_bases else "frozen"

    @property
    def factors(self) -> Factors:
        """``u, core, vh``, held or computed in full precision; only where it is factored."""
        module, weight = self.owners[0]
        assert isinstance(module, LowRankModule)
        if self.trains_bases:
            return Factors(*orthonormal_form(*module.pair_of(weight)))
        return module.factors(weight)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """``left`` and ``right``, as views; only where the bases are trained."""
        module, weight = self.owners[0]
        assert isinstance(module, LowRankModule)
        left, right = module.pair_of(weight)
        return left.detach(), right.detach()

    @property
    def matrix(self) -> Tensor:
        """What is decomposed: the core where it is factored, else the dense weight, no graph."""
        if self.trains_bases:
            return self.factors.core
        value = self.parameter.detach()
        return value if self.factored else self.layout.matrix(value)

    @property
    def rank(self) -> int:
        """Its rank; the full one while it is dense."""
        return self.parameter.shape[-2] if self.factored else self.layout.full_rank

    @property
    def dense_numbers(self) -> int:
        """Numbers in the dense weight."""
        return self.layout.blocks * self.layout.m * self.layout.n


@dataclass(frozen=True)
class Refusal:
    """A layer that stays as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """Which layers are left out of a search for sites.

    Attributes:
        skip: ``fnmatch`` patterns on qualified module names; each must match a module with a
            weight of its own (a block is skipped with ``"block.*"``).
        only: The same patterns for the layers to convert; all others stay as they are. Empty
            takes every layer.
        dense_first: The first layer with a weight stays dense, by position in the model.
        dense_last: The last one does.
        shared_attention_basis: Query, key and value of packed attention share one basis.
        max_aspect: A weight whose larger side is this many times the smaller, or more,
            stays dense; ``math.inf`` takes every shape.
        also: Kinds of layers that are taken on request only, and then whatever their shape.
    """

    skip: Collection[str] = ()
    only: Collection[str] = ()
    dense_first: bool = False
    dense_last: bool = False
    shared_attention_basis: bool = False
    max_aspect: float = MAX_ASPECT
    also: Sequence[str] = ()


def find_sites(
    model: nn.Module, selection: Selection, *, trained: Set[int] | None = None
) -> tuple[list[Site], list[Refusal]]:
    """Every weight that can be held low-rank, in the order modules are registered.

    A module that is shared comes once. A weight that several modules own comes once with all
    its owners, if all of them can hold it; otherwise it is refused.

    Args:
        model: The inner model, without wrappers.
        selection: What is left out.
        trained: ``id`` of each parameter the optimizer holds; others are refused. ``None``
            where no training is going on.

    Raises:
        ConfigError: A pattern matches nothing, or only modules without a weight.
    """
    skipped = _named(model, selection.skip)
    only = _named(model, selection.only) if selection.only else None
    layers = [module for _, module in named_modules_clean(model) if is_layer(module)]
    ends = {id(layer) for layer in layers[:1] if selection.dense_first}
    ends |= {id(layer) for layer in layers[-1:] if selection.dense_last}
    weights = list(_weights(model, selection))
    foreign = _other_owners(model, weights)
    by_parameter: dict[int, list[Site]] = {}
    for site in weights:
        by_parameter.setdefault(id(site.parameter), []).append(site)
    adapters = adapted(model)
    without = dict(left_as_they_are(model, by_parameter.keys(), also=selection.also))
    for key, owners in foreign.items():
        for name, module in owners:
            without.setdefault(name, _tied_to(by_parameter[key], module))
    sites, refusals = [], [Refusal(name, reason) for name, reason in without.items()]
    for key, tied in by_parameter.items():
        reasons = [
            adapters.get(id(site.owners[0][0]))
            or _refusal(site, selection, ends, skipped)
            or _tied_to_foreign(site, foreign.get(key))
            or _left_out(site, only)
            for site in tied
        ]
        if trained is not None:
            reasons = [reason or _untrained(tied[0], trained) for reason in reasons]
        reasons = [reason or _hooked(tied[0]) for reason in reasons]
        if len({site.layout for site in tied}) > 1:
            told = {site.name: [other for other in tied if other is not site] for site in tied}
            reasons = [_tied_to(told[site.name], site.owners[0][0]) for site in tied]
        if any(reasons):
            shared = next(reason for reason in reasons if reason)
            refusals += [
                Refusal(site.name, reason or f"tied to a weight that stays dense ({shared})")
                for site, reason in zip(tied, reasons, strict=True)
            ]
        else:
            tied[0].owners = [owner for site in tied for owner in site.owners]
            sites.append(tied[0])
    return sites, refusals


def too_thin(layout: WeightLayout, max_aspect: float) -> str | None:
    """Why a weight of this shape stays dense; None where it may be cut."""
    small, large = sorted((layout.m, layout.n))
    if small * max_aspect <= large:
        return f"too thin: {layout.m} x {layout.n}, max_aspect={max_aspect:g} leaves it out"
    return None


def require_supported(optimizer: Optimizer, site: Site, *, shape: Sequence[int], what: str) -> None:
    """Refuse an optimizer that cannot train a site's factors of a shape; ``what`` cannot be done.

    Raises:
        ConfigError: It cannot; the message names the layer.
    """
    try:
        check_supported(optimizer, new_shape=shape)
    except ConfigError as error:
        raise ConfigError(f"{what} {site.name}: {error}") from error


def other_numbers(model: nn.Module, sites: Sequence[Site]) -> int:
    """Numbers in the parameters of a model outside its sites."""
    return sum(numbers_outside(model, sites).values())


def numbers_outside(model: nn.Module, sites: Sequence[Site]) -> dict[str, int]:
    """The same by the name of the first module that holds them."""
    seen = {id(site.parameter) for site in sites}
    found: dict[str, int] = {}
    for name, module in named_modules_clean(model):
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found[name] = found.get(name, 0) + parameter.numel()
    return found


def require_sites(sites: Sequence[Site], refusals: Sequence[Refusal], what: str) -> None:
    """Refuse a model in which nothing can be converted.

    Raises:
        ConfigError: ``sites`` is empty; the message names why each layer was refused.
    """
    if sites:
        return
    by_reason: dict[str, list[str]] = {}
    for refusal in refusals:
        by_reason.setdefault(refusal.reason, []).append(refusal.name or "the model")
    shown = "; ".join(_said(reason, names) for reason, names in by_reason.items())
    raise ConfigError(
        f"{what} needs at least one eligible layer (Linear, Conv1d/2d/3d, MultiheadAttention), "
        f"got a model with none{': ' + shown if shown else ''}; loosen skip, max_aspect, "
        "dense_first and dense_last, or give the module that holds the layers"
    )


def _said(reason: str, names: Sequence[str], most: int = 8) -> str:
    """A reason with the names of the layers that it holds for."""
    first, *others = names
    more = f" and {len(names) - most} more" if len(names) > most else ""
    also = f" (also {', '.join(others[: most - 1])}{more})" if others else ""
    return f"{first}: {reason}{also}"


def _weights(model: nn.Module, selection: Selection) -> Iterator[Site]:
    """One site per weight, before any is refused."""
    for name, module in named_modules_clean(model):
        low_rank_class = low_rank_class_of(module)
        if low_rank_class is None or not is_asked_for(low_rank_class, selection.also):
            continue
        held = [
            w for w in low_rank_class.weights_of(module) if weight_parameter(module, w) is not None
        ]
        for weight in held:
            layouts = low_rank_class.layouts(module, weight)
            shared = selection.shared_attention_basis and not is_factored(module, weight)
            layout = layouts[-1] if shared else low_rank_class.layout(module, weight)
            label = name if weight == "weight" else f"{name}.{weight}".lstrip(".")
            conv = isinstance(module, nn.modules.conv._ConvNd)
            multiple = CONV_RANK_MULTIPLE if conv else 1
            yield Site(label, layout, multiple, [(module, weight)])


def _named(model: nn.Module, patterns: Collection[str]) -> set[int]:
    """``id`` of every module that a pattern names."""
    for pattern in patterns:  # one by one: each must match, and match something with a weight
        select_parameters(model, [pattern])
    return (
        {id(module) for _, module in select_modules(model, list(patterns))} if patterns else set()
    )


def _refusal(site: Site, selection: Selection, ends: Set[int], skipped: Set[int]) -> str | None:
    """Why a weight stays as it is; None where it can be converted."""
    module, _ = site.owners[0]
    parameter, layout = site.parameter, site.layout
    if id(module) in ends:
        return "first or last layer of the model, kept dense by dense_first or dense_last"
    if id(module) in skipped:
        return "skipped by pattern"
    if type(parameter) is not nn.Parameter or parameter.is_meta:
        kind = "on the meta device" if parameter.is_meta else f"a {type(parameter).__name__}"
        return f"its weight is {kind}, a plain parameter with values is needed"
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1:
        return "depthwise convolution: nothing to factor"
    if site.factored:
        return None
    if not parameter.is_floating_point():
        return f"its weight has dtype {parameter.dtype}, a floating one is needed"
    if not site.intact:
        return f"its weight is {tuple(parameter.shape)}, the layer says {tuple(layout.shape)}"
    low_rank_class = low_rank_class_of(module)
    asked_for = low_rank_class is not None and low_rank_class.on_request
    if not asked_for and (thin := too_thin(layout, selection.max_aspect)) is not None:
        return thin
    return acts_on_rows(module)


def _left_out(site: Site, only: Set[int] | None) -> str | None:
    named = only is None or id(site.owners[0][0]) in only
    return None if named else "not named by only"


def _untrained(site: Site, trained: Set[int]) -> str | None:
    if not site.parameter.requires_grad:
        return "frozen: its weight requires no gradient"
    if id(site.parameter) not in trained:
        return "its weight belongs to no parameter group of this optimizer"
    return None


def _hooked(site: Site) -> str | None:
    """Why a hook keeps a weight dense; from here on its hooks are watched."""
    if site.factored:
        return None
    watch_hooks(site.parameter, site.name)
    return hook_that_needs_the_shape(site.parameter)


def _tied_to(others: Sequence[Site], module: nn.Module) -> str:
    """Why a module that shares its weight with these stays dense."""
    owners = [owner for site in others for owner, _ in site.owners]
    named = ", ".join(site.name or "the model" for site in others)
    return _tied(named, [module, *owners])


def _tied_to_foreign(site: Site, owners: Sequence[tuple[str, nn.Module]] | None) -> str | None:
    """Why a site that shares its weight with modules that are no sites stays dense."""
    if not owners:
        return None
    named = ", ".join(f"{name or 'the model'} ({type(module).__name__})" for name, module in owners)
    return _tied(named, [site.owners[0][0], *(module for _, module in owners)])


def _tied(named: str, owners: Sequence[nn.Module]) -> str:
    tables = [isinstance(owner, nn.Embedding) for owner in owners]
    heads = [isinstance(owner, nn.Linear) for owner in owners]
    if any(tables) and any(heads):
        return f"tied to {named}: {TIED_HEAD}"
    return f"tied to {named}, which reads it in another way"


def _other_owners(
    model: nn.Module, sites: Sequence[Site]
) -> dict[int, list[tuple[str, nn.Module]]]:
    """Modules that hold the weight of a site and are none, by ``id`` of the Parameter."""
    known = {id(site.owners[0][0]) for site in sites}
    held = {id(site.parameter) for site in sites}
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in named_modules_clean(model):
        if id(module) not in known:
            for key in {id(p) for p in module._parameters.values()} & held:
                owners.setdefault(key, []).append((name, module))
    return owners
