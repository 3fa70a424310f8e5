"""What follows a change of structure: copies of a model, and models that load its checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from orthotrain._doors import checked
from orthotrain._sharded import SHARD_AFTER, require_whole
from orthotrain.errors import CheckpointError, ConfigError, OrthotrainWarning
from orthotrain.layers._factor_names import factor_names, pair_name
from orthotrain.layers._factors import (
    LowRankModule,
    follow_state_dict,
    hold_factors_,
    hold_pair_,
    holds_pair,
    is_factored,
    low_rank_class_of,
    weight_parameter,
)
from orthotrain.layers._parameters import resize_parameter_
from orthotrain.linalg import working_dtype
from orthotrain.linalg.factor_pair import nearest_pair
from orthotrain.lowrank.distributed_checkpoint import is_metadata, shapes_of_model
from orthotrain.lowrank.names import as_names_of, clean_keys, is_factored_name
from orthotrain.lowrank.no_form import TIED_HEAD
from orthotrain.lowrank.pretrained import guard
from orthotrain.lowrank.sites import Site
from orthotrain.methods.select import named_modules_clean


class FollowingCopy:
    """A copy of a model whose layers take over the basis of the original's."""

    def __init__(self, copy: nn.Module, model: nn.Module, sites: Sequence[Site]) -> None:
        self._copy, self._model = copy, model
        self._owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for site in sites:
            self._owners[id(site)] = self._owners_of(site)

    def take(self, sites: Sequence[Site]) -> None:
        """Follow these sites from now on: layers of the model came, went or were replaced.

        Warns:
            OrthotrainWarning: The copy has no such layer, and stays as it is there.
        """
        known = self._owners
        self._owners = {}
        for site in sites:
            try:
                self._owners[id(site)] = known.get(id(site)) or self._owners_of(site)
            except ConfigError as error:
                warnings.warn(
                    f"{site.name} is not followed: {error}", OrthotrainWarning, stacklevel=2
                )

    def _owners_of(self, site: Site) -> list[tuple[nn.Module, str]]:
        theirs = dict(named_modules_clean(self._copy))
        names = {id(module): name for name, module in named_modules_clean(self._model)}
        owners = []
        for module, weight in site.owners:
            name = names[id(module)]
            twin, low_rank_class = theirs.get(name), low_rank_class_of(module)
            if (
                twin is None
                or low_rank_class is None
                or low_rank_class_of(twin) is not low_rank_class
                or low_rank_class.layout(twin, weight).shape != site.layout.shape
            ):
                raise ConfigError(
                    f"track needs a copy of the attached model, got one without a "
                    f"{type(module).__name__} named {name!r} of its shape; pass "
                    "copy.deepcopy(model) or torch.optim.swa_utils.AveragedModel(model)"
                )
            owners.append((twin, weight))
        return owners

    @torch.no_grad()
    def follow(self, site: Site, *, changed: bool = True) -> None:
        """Take over the site's basis; the copy's own weight is projected into it.

        ``core_copy <- u^T W_copy vh^T``, which for a low-rank copy is
        ``u^T u_copy core_copy vh_copy vh^T``. A copy in that very basis is left as it is, bit
        for bit.

        Of a pair, whose bases move all the time, the projection becomes the pair nearest to the
        site's. Where the site did not change, a copy with a pair of that shape is left as it is.
        """
        if not site.factored or id(site) not in self._owners:
            return
        if site.trains_bases:
            self._follow_pair(site, changed=changed)
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

    def _follow_pair(self, site: Site, *, changed: bool) -> None:
        left, right = site.pair
        u, _, vh = site.factors
        done: set[int] = set()  # parameters that several modules own
        for module, weight in self._owners[id(site)]:
            parameter, low_rank_class = weight_parameter(module, weight), low_rank_class_of(module)
            assert parameter is not None
            assert low_rank_class is not None
            same = holds_pair(module, weight) and parameter.shape == site.parameter.shape
            if id(parameter) not in done and (changed or not same):
                core = _projected(module, weight, site)
                on = (t.to(core.device) for t in (u, vh, left, right))
                u_there, vh_there, left_there, right_there = on
                pair = nearest_pair(u_there, core, vh_there, left=left_there, right=right_there)
                resize_parameter_(parameter, pair)
            done.add(id(parameter))
            hold_pair_(module, weight, low_rank_class)


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


@checked
def follow(model: nn.Module) -> nn.Module:
    """Let a model take the structure of every low-rank state dict that it loads from now on.

    For a model with nothing attached, before a loop of Transformers or Lightning, an averaged
    copy or an evaluation script calls ``load_state_dict``. Layers become low-rank, or dense
    again, as the state dict has them, with its ranks. Wrappers make no difference: those around
    the model, and those inside (``torch.compile``, activation checkpointing). Copies follow, too.

    Layers that are added later do not follow: call it again. ``attach`` does the same.

    A state dict that has two layers in the place of one, after ``to_factored``, is refused with a
    ``CheckpointError``, also where the load is not strict. It loads into a model after
    ``to_factored``; ``orthotrain.load`` and ``from_pretrained`` read files of such models.

    Args:
        model: Any model, wrapped or not; changed by hooks alone.

    Returns:
        The same model.

    Raises:
        ConfigError: ``model`` is no module, none of its layers has a low-rank form, or it is
            sharded over processes.
    """
    require_whole("follow", model, SHARD_AFTER)
    if not follow_checkpoints(model):
        raise ConfigError(
            "follow needs a model with layers that have a low-rank form (nn.Linear, convolutions, "
            f"nn.MultiheadAttention, Transformers' Conv1D), got {type(model).__name__} with none"
        )
    model.register_load_state_dict_post_hook(_share_after_load)  # type: ignore[no-untyped-call]
    return model


def _share_after_load(model: nn.Module, _: object) -> None:
    share_tied_factors_(model)


def unfollow(model: nn.Module) -> None:
    """Take off what ``follow`` and ``attach`` have put there; what was loaded stays."""
    for module in model.modules():
        before, after = module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks
        for key in [k for k, h in before.items() if getattr(h, "hook", None) is follow_state_dict]:
            del before[key]
        for key in [k for k, h in after.items() if h is _share_after_load]:
            del after[key]


def follow_checkpoints(model: nn.Module) -> list[RemovableHandle]:
    """Let every layer of a model take the structure of a state dict before its values.

    From then on it may be low-rank, so it is made to say so where it is saved.
    """
    guard(model)
    return [
        module.register_load_state_dict_pre_hook(follow_state_dict)  # type: ignore[no-untyped-call]
        for module in model.modules()
        if low_rank_class_of(module) is not None
    ]


@checked
def restore_structure(model: nn.Module, state_dict: Mapping[str, Any]) -> nn.Module:
    """Shape a model like the checkpoint that ``state_dict`` comes from, in place.

    Ranks and forms follow the checkpoint; values are not copied, ``load_state_dict`` does that.
    Until then, weights whose shape changed are NaN.
    What wrappers put into names (``module.``, ``_orig_mod.``) does not matter on either side.

    Args:
        model: A fresh model, dense or low-rank.
        state_dict: Names and tensors; only the shapes of factors are read. Of a checkpoint of
            ``torch.distributed.checkpoint``, which loads into tensors that are there:
            ``FileSystemReader(folder).read_metadata().state_dict_metadata``.

    Returns:
        The same model.

    Raises:
        ConfigError: The model is sharded over processes.
        CheckpointError: Factors that do not fit a layer, or that no layer of the model has; or
            two layers, by ``to_factored``, in the place of one.
    """
    require_whole("restore_structure", model, SHARD_AFTER)
    if is_metadata(state_dict):
        state_dict = shapes_of_model(model, state_dict)
    guard(model)
    wanted = as_names_of(model, state_dict)
    factored = {name for name in wanted if is_factored_name(name)}
    of_heads = list(_of_tied_heads(model, factored))
    problems: list[str] = []
    known = {*clean_keys(model)}  # a dense parameter may be called core
    for name, module in named_modules_clean(model, remove_duplicate=False):
        low_rank_class = low_rank_class_of(module)
        if low_rank_class is not None:
            prefix = f"{name}." if name else ""
            for weight in low_rank_class.weights_of(module):
                known |= {prefix + factor_names(weight)[1], prefix + pair_name(weight)}
            follow_state_dict(module, wanted, prefix, problems)
    homeless = sorted(factored - known)
    problems += [f"{name} has no layer in this model" for name in homeless]
    problems += [f"{name}: {TIED_HEAD}" for name in of_heads]
    if problems:
        raise CheckpointError(
            "restore_structure needs the model that the checkpoint was saved from, got: "
            + "; ".join(problems[:5])
            + "; build the model with the settings it was trained with"
            + _leave_out([*homeless, *of_heads])
        )
    share_tied_factors_(model)
    return model


def _of_tied_heads(model: nn.Module, factored: Set[str]) -> Iterator[str]:
    """Factors of a weight that an embedding and a linear layer of the model share."""
    owners: dict[int, dict[str, nn.Module]] = {}
    for name, module in named_modules_clean(model, remove_duplicate=False):
        if (weight := module._parameters.get("weight")) is not None:
            owners.setdefault(id(weight), {})[name] = module
    for held in owners.values():
        kinds = [any(isinstance(m, k) for m in held.values()) for k in (nn.Embedding, nn.Linear)]
        if all(kinds):
            names = (f"{name}.{each}" for name in held for each in ("pair", "core"))
            yield from sorted(factored & set(names))


def _leave_out(factors: Sequence[str]) -> str:
    """What to try where no layer here can hold these factors: a file is cut by names alone."""
    layers = dict.fromkeys(name.rpartition(".")[0] or name for name in factors)
    if not layers:
        return ""
    return (
        ". A file that orthotrain compress made: make it again without what cannot be low-rank, "
        f"--skip {' '.join(list(layers)[:5])} (skip= in Python)"
    )


def share_tied_factors_(model: nn.Module) -> None:
    """Give modules that share one core the same ``u`` and ``vh`` tensors again, after a load."""
    first: dict[int, tuple[LowRankModule, str]] = {}
    for module, weight in factored_weights(model):
        if holds_pair(module, weight):
            continue  # there is nothing beside the one Parameter
        u, core, vh = module.factors(weight)
        owner, owner_weight = first.setdefault(id(core), (module, weight))
        if owner is not module:
            shared = owner.factors(owner_weight)
            if shared.u.shape == u.shape and shared.vh.shape == vh.shape:
                hold_factors_(module, weight, type(module), shared.u, shared.vh)


def factored_weights(model: nn.Module) -> list[tuple[LowRankModule, str]]:
    """Every ``(module, weight name)`` that is held in factors, in model order."""
    return [
        (module, weight)
        for module in model.modules()
        if isinstance(module, LowRankModule)
        for weight in module.weights_of(module)
        if is_factored(module, weight)
    ]
