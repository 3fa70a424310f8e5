"""Change how a model holds its weights, in place: factor, rebase, merge, follow a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from orthotrain.errors import CheckpointError, ConfigError, NonFiniteError
from orthotrain.layers import stored_numbers
from orthotrain.layers._factors import (
    LowRankModule,
    factor_names,
    follow_state_dict,
    hold_dense_,
    hold_factors_,
    is_factored,
    low_rank_class_of,
    resize_parameter_,
)
from orthotrain.layers.low_rank import LowRankLinear, LowRankTransposedLinear
from orthotrain.linalg import thin_svd
from orthotrain.linalg.decompose import singular_values
from orthotrain.lowrank.policy import Candidate, Limits, RankRule, decided_ranks
from orthotrain.lowrank.sites import Selection, Site, find_sites, other_numbers, require_sites
from orthotrain.methods.select import clean_name, unwrap


@torch.no_grad()
def hold_site_(site: Site, u: Tensor, core: Tensor, vh: Tensor) -> None:
    """Hold a site's weight as ``u @ core @ vh``, given in any precision; tied owners share it."""
    parameter = site.parameter
    resize_parameter_(parameter, core)
    u, vh = (t.to(parameter.dtype).contiguous().clone() for t in (u, vh))
    for module, weight in site.owners:
        low_rank_class = low_rank_class_of(module)
        assert low_rank_class is not None
        hold_factors_(module, weight, low_rank_class, u, vh)


def to_dense(model: nn.Module) -> nn.Module:
    """Merge every low-rank layer into a plain dense one, in place.

    The modules keep their identity and return to their own class; the core's Parameter object
    becomes the dense weight. Meant for after training: optimizer state of the cores is not
    carried over.

    Args:
        model: A model with or without low-rank layers.

    Returns:
        The same model; its outputs agree to rounding.
    """
    merged: set[int] = set()
    for module, weight in _factored_weights(model):
        core = module._parameters[factor_names(weight)[1]]
        assert core is not None
        if id(core) not in merged:
            merged.add(id(core))
            dense = _product(module, weight)
            hold_dense_(module, weight)
            resize_parameter_(core, dense)
        else:
            hold_dense_(module, weight)
    return model


def to_factored(model: nn.Module) -> nn.Module:
    """Turn low-rank layers into two plain layers each, for deployment, in place.

    ``u @ core`` folds into one factor, so a layer stores ``k (m + n)`` numbers. A layer for
    which that is not less than the dense weight becomes dense, and so does one whose weight
    torch's own code reads by name: attention projections and the linear layers inside
    ``nn.TransformerEncoderLayer``, ``nn.TransformerDecoderLayer`` and ``nn.MultiheadAttention``.

    Args:
        model: A model with or without low-rank layers.

    Returns:
        The same model with ``nn.Sequential`` pairs in the place of low-rank layers; the model
        itself becomes a dense layer again where it is one. Outputs agree to rounding.
    """
    pairs: dict[int, nn.Sequential] = {}
    first_of_core: dict[int, nn.Sequential] = {}
    for parent in list(model.modules()):
        if isinstance(parent, _READS_WEIGHTS_BY_NAME):
            continue
        for name, child in list(parent._modules.items()):
            if not (isinstance(child, LowRankModule) and _pays_as_two_layers(child)):
                continue
            if id(child) not in pairs:
                pair = pairs[id(child)] = _two_layers(child)
                tied = first_of_core.setdefault(id(child.factors().core), pair)
                for layer, same in zip(pair, tied, strict=True):
                    layer._parameters["weight"] = same._parameters["weight"]
            setattr(parent, name, pairs[id(child)])
    return to_dense(model)


def compress(
    model: nn.Module,
    *,
    rank_rtol: float | None = None,
    energy: float | None = None,
    stored_budget: float | None = None,
    skip: Sequence[str] = (),
    only_if_cheaper: bool = True,
) -> nn.Module:
    """Truncate a trained model's layers to low rank at once, in place.

    Args:
        model: The trained model, dense or low-rank.
        rank_rtol: Drop singular values below this share of a layer's largest, in ``[0, 1)``.
        energy: Instead: keep this share of each layer's energy, in ``(0, 1]``.
        stored_budget: Instead: the whole model's stored numbers as a share of the dense one's.
        skip: ``fnmatch`` patterns on qualified module names that stay as they are.
        only_if_cheaper: Leave a layer as it is where its factors hold no fewer numbers.

    Ranks of convolutions are rounded up to a multiple of 16, as in training.

    Returns:
        The same model with low-rank layers.

    Raises:
        ConfigError: Not exactly one rule, a value outside its range, a pattern that matches
            nothing, a budget that cannot be met, or no layer that can be converted.
        NonFiniteError: A weight holds NaN or infinity; the message names the layer.
    """
    given = {"rank_rtol": rank_rtol, "energy": energy, "stored_budget": stored_budget}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        raise ConfigError(
            f"compress needs exactly one of rank_rtol, energy and stored_budget, got {chosen}; "
            "choose the rule and leave the others out"
        )
    if isinstance(skip, str):
        raise ConfigError(f"compress needs skip to be a sequence of patterns, got {skip!r}")
    rule = RankRule(**chosen)
    inner = unwrap(model)
    sites, refusals = find_sites(inner, Selection(skip=tuple(skip)))
    require_sites(sites, refusals, "compress")
    candidates = [
        Candidate(
            spectrum=spectrum(site), cut_energy=(), ceiling=site.rank, m=site.layout.m,
            n=site.layout.n, may_stay_dense=only_if_cheaper and not site.factored,
            within_reach=True, multiple=site.multiple,
        )
        for site in sites
    ]  # fmt: skip
    ranks = decided_ranks(
        candidates, rule=rule, limits=Limits(max_drop=1.0, min_rank_fraction=0.0),
        other_numbers=other_numbers(inner, sites),
    )  # fmt: skip
    for site, rank in zip(sites, ranks, strict=True):
        if not only_if_cheaper or _stored(site, rank) < _stored(site):
            p, s, qh = decomposed(site)
            cut_site_(site, p[..., :rank], s[..., :rank], qh[..., :rank, :])
    return model


def spectrum(site: Site) -> Tensor:
    """``(blocks, r)`` singular values of a site's core, or of its dense weight.

    Raises:
        NonFiniteError: The weight holds NaN or infinity.
    """
    s = singular_values(_finite_matrix(site))
    return s.reshape(-1, s.shape[-1])


def decomposed(site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of a site's core, or of its dense weight, in the working precision.

    Raises:
        NonFiniteError: The weight holds NaN or infinity.
    """
    return thin_svd(_finite_matrix(site))


def require_finite(site: Site) -> None:
    """Refuse a weight that no decomposition can take.

    Raises:
        NonFiniteError: The weight holds NaN or infinity; the message names the layer.
    """
    if not bool(torch.isfinite(site.parameter).all()):
        raise NonFiniteError(
            f"a decomposition needs finite weights, got NaN or infinity in {site.name}, shape "
            f"{tuple(site.parameter.shape)}; lower the learning rate or clip gradients, and go "
            "on from the last good checkpoint"
        )


def _finite_matrix(site: Site) -> Tensor:
    require_finite(site)
    value = site.parameter.detach()
    return value if site.factored else site.layout.matrix(value)


def _stored(site: Site, rank: int | None = None) -> int:
    """Numbers that hold a site's weight, now or at a rank."""
    layout = site.layout
    if rank is None and not site.factored:
        return layout.blocks * layout.m * layout.n
    return layout.blocks * stored_numbers(layout.m, layout.n, site.rank if rank is None else rank)


def cut_site_(site: Site, p: Tensor, s: Tensor, qh: Tensor) -> None:
    """Take the leading part ``p @ diag(s) @ qh`` of a decomposition as the new factors.

    Of a dense weight these are the factors themselves; of a core they turn ``u`` and ``vh``.
    """
    if site.factored:
        u, _, vh = site.factors
        p, qh = u.to(p) @ p, qh @ vh.to(qh)
    hold_site_(site, p, torch.diag_embed(s), qh)


def restore_structure(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Shape a model like the checkpoint that ``state_dict`` comes from, in place.

    Ranks and forms follow the checkpoint; values are not copied, ``load_state_dict`` does that.
    Wrapper prefixes (``module.``, ``_orig_mod.``) on either side do not matter.

    Args:
        model: A fresh model, dense or low-rank.
        state_dict: Names and tensors; only the shapes of factors are read.

    Returns:
        The same model.

    Raises:
        CheckpointError: Factors that do not fit a layer, or that no layer of the model has.
    """
    wanted = {clean_name(name): value for name, value in state_dict.items()}
    problems: list[str] = []
    known: set[str] = set()
    for name, module in unwrap(model).named_modules(remove_duplicate=False):
        low_rank_class = low_rank_class_of(module)
        if low_rank_class is not None:
            prefix = f"{clean_name(name)}." if name else ""
            known |= {prefix + factor_names(weight)[1] for weight in low_rank_class.weight_names}
            follow_state_dict(module, wanted, prefix, problems)
    cores = {name for name in wanted if name == "core" or name.endswith((".core", "_core"))}
    problems += [f"{name} has no layer in this model" for name in sorted(cores - known)]
    if problems:
        raise CheckpointError(
            "restore_structure needs the model that the checkpoint was saved from, got: "
            + "; ".join(problems[:5])
            + "; build the model with the settings it was trained with"
        )
    share_tied_factors_(model)
    return model


def share_tied_factors_(model: nn.Module) -> None:
    """Give modules that share one core the same ``u`` and ``vh`` tensors again, after a load."""
    first: dict[int, tuple[LowRankModule, str]] = {}
    for module, weight in _factored_weights(model):
        u, core, vh = module.factors(weight)
        owner, owner_weight = first.setdefault(id(core), (module, weight))
        if owner is not module:
            shared = owner.factors(owner_weight)
            if shared.u.shape == u.shape and shared.vh.shape == vh.shape:
                hold_factors_(module, weight, type(module), shared.u, shared.vh)


_READS_WEIGHTS_BY_NAME = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def _factored_weights(model: nn.Module) -> list[tuple[LowRankModule, str]]:
    return [
        (module, weight)
        for module in model.modules()
        if isinstance(module, LowRankModule)
        for weight in module.weight_names
        if is_factored(module, weight)
    ]


@torch.no_grad()
def _product(module: LowRankModule, weight: str) -> Tensor:
    """The dense weight, multiplied in float64 and rounded once."""
    u, core, vh = module.factors(weight)
    exact = torch.float32 if core.device.type == "mps" else torch.float64
    product = u.to(exact) @ core.to(exact) @ vh.to(exact)
    return product.reshape(module.layout(module, weight).shape).to(core.dtype)


def _pays_as_two_layers(module: LowRankModule) -> bool:
    """Whether two plain layers hold fewer numbers than one; never for packed projections."""
    if module.weight_names != ("weight",):
        return False
    layout = module.layout(module, "weight")
    return module.rank * (layout.m + layout.n) < layout.m * layout.n


@torch.no_grad()
def _two_layers(module: LowRankModule) -> nn.Sequential:
    """A layer by ``vh`` into ``k`` features or channels, and one by ``u @ core`` out of them."""
    u, core, vh = module.factors()
    kind: dict[str, object] = {"device": core.device, "dtype": core.dtype}
    left, k = u @ core, core.shape[-1]
    bias = module._parameters["bias"]
    first: nn.Module
    second: nn.Module
    if isinstance(module, LowRankTransposedLinear):
        left, vh = vh.mT, left.mT
    if isinstance(module, nn.modules.conv._ConvNd):
        convolution, groups = module._dense_class, module.groups
        first = convolution(
            module.in_channels, groups * k, module.kernel_size, module.stride, module.padding,
            module.dilation, groups, False, module.padding_mode, **kind,
        )  # fmt: skip
        second = convolution(
            groups * k, module.out_channels, 1, groups=groups, bias=bias is not None, **kind
        )
    else:
        assert isinstance(module, LowRankLinear | LowRankTransposedLinear)
        first = nn.Linear(vh.shape[1], k, bias=False, **kind)
        second = nn.Linear(k, left.shape[0], bias=bias is not None, **kind)
    for layer, value in ((first, vh), (second, left)):
        target = layer._parameters["weight"]
        assert target is not None
        target.copy_(value.reshape(target.shape))
    if bias is not None:
        second.bias = bias
    return nn.Sequential(first, second).train(module.training)
