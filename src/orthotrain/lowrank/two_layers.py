"""Two plain layers in the place of one: what ``to_factored`` leaves, known again without a mark.

The place is taken by an ``nn.Sequential`` with three more things that are torch's own, so that a
pickle needs nothing else. It has the sizes of the layer before (``in_features``, ``stride``), its
``rank``, and a buffer ``weight`` that is no part of the state dict: code that reads
``layer.weight.dtype`` or ``.device`` finds them, also after ``.to()``. Its value is one NaN without
dimensions. So code that computes with it, and that :mod:`orthotrain.lowrank.readers` has not found,
ends with NaN or with an error. Only counts and comparisons (``numel``, ``==``) answer for a NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from orthotrain.errors import CheckpointError
from orthotrain.layers._factors import (
    LowRankModule,
    is_factored,
    low_rank_class_of,
    weight_parameter,
)
from orthotrain.layers.low_rank import LowRankTransposedLinear
from orthotrain.layers.low_rank_conv_transpose import transposed_filters
from orthotrain.layers.low_rank_embedding import LowRankEmbedding

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def is_pair(module: nn.Module) -> bool:
    """Whether a module is two plain layers in the place of one, also out of a pickle."""
    made = type(module) is nn.Sequential and len(module) == 2
    return made and "weight" in module._non_persistent_buffers_set and "rank" in vars(module)


def ranks_of_pairs(model: nn.Module) -> dict[str, int]:
    """Rank of every pair in a model by its name; one at several places has several names."""
    return {
        name: vars(module)["rank"]
        for name, module in model.named_modules(remove_duplicate=False)
        if is_pair(module)
    }


def put_pairs_(model: nn.Module, ranks: Mapping[str, int]) -> dict[nn.Parameter, nn.Sequential]:
    """Put pairs in the place of layers, in place.

    A layer at several places gives one pair, and tied weights stay tied.

    Args:
        model: What holds the layers, dense or low-rank.
        ranks: By name of the layer as in ``named_modules``. A low-rank layer gives its values; of
            a dense one the pair has fresh values, and the rank is free.

    Returns:
        The pairs by the Parameter of the layer before.

    Raises:
        CheckpointError: There is no such layer, or it has no such form or rank.
    """
    pairs: dict[nn.Module, nn.Sequential] = {}  # holds the layers, or a new one may take an id
    first_of_weight: dict[nn.Parameter, nn.Sequential] = {}
    for name in sorted(ranks, key=lambda each: each.count(".")):  # a pair may hold others
        parent, _, own = name.rpartition(".")
        try:
            held = model.get_submodule(parent)._modules
            layer = held[own]
        except (AttributeError, KeyError):
            layer = None
        parameter = None if layer is None else _weight_of(layer, ranks[name])
        if layer is None or parameter is None:
            raise CheckpointError(
                f"two layers of rank {ranks[name]} cannot take the place of {name!r}, which is "
                f"{'missing' if layer is None else layer}; build the model that was saved"
            )
        if layer not in pairs:
            pair = pairs[layer] = _two_layers(layer, ranks[name])
            tied = first_of_weight.setdefault(parameter, pair)
            for new, same in zip(pair, tied, strict=True):
                new._parameters["weight"] = same._parameters["weight"]
        held[own] = pairs[layer]
    return first_of_weight


def _weight_of(layer: nn.Module, rank: int) -> nn.Parameter | None:
    """The Parameter behind the one weight of a layer; None where two layers cannot stand for it."""
    known = low_rank_class_of(layer)
    if known is None or known.weights_of(layer) != ("weight",):
        return None
    return weight_parameter(layer, "weight") if rank > 0 else None


@torch.no_grad()
def _two_layers(module: nn.Module, k: int) -> nn.Sequential:
    """A layer by ``vh`` into ``k`` features or channels, and one by ``u @ core`` out of them."""
    known, like = low_rank_class_of(module), weight_parameter(module, "weight")
    assert known is not None
    assert like is not None
    kind: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    bias = module._parameters.get("bias")
    layout = known.layout(module, "weight")
    out, into = layout.m, layout.n
    first: nn.Module
    second: nn.Module
    if isinstance(module, _ConvNd):
        groups = module.groups
        dense: Any = module.__dict__.get("_dense_class", type(module))
        first = dense(
            module.in_channels, groups * k, module.kernel_size, module.stride, module.padding,
            dilation=module.dilation, groups=groups, bias=False,
            padding_mode=module.padding_mode, **kind,
        )  # fmt: skip
        if isinstance(first, _ConvTransposeNd):
            first.output_padding = module.output_padding
        out = module.out_channels
        second = _CONV[len(module.kernel_size)](
            groups * k, out, 1, groups=groups, bias=bias is not None, **kind
        )
    elif issubclass(known, LowRankEmbedding):
        first = nn.Embedding(into, k, module.padding_idx, **kind)  # type: ignore[arg-type]
        second = nn.Linear(k, out, bias=False, **kind)
    else:
        if issubclass(known, LowRankTransposedLinear):
            out, into = into, out
        first = nn.Linear(into, k, bias=False, **kind)
        second = nn.Linear(k, out, bias=bias is not None, **kind)
    if is_factored(module, "weight"):
        assert isinstance(module, LowRankModule)
        _take_values_(first, second, module)
    for layer in (first, second):
        layer.requires_grad_(like.requires_grad)
    if bias is not None:
        second.bias = bias
    pair = nn.Sequential(first, second).train(module.training)
    _answer_for_(pair, module, like.new_full((), torch.nan))
    vars(pair)["rank"] = k
    return pair


def _take_values_(first: nn.Module, second: nn.Module, module: LowRankModule) -> None:
    left, right = module.two_factors()
    if isinstance(module, LowRankTransposedLinear):
        left, right = right.mT, left.mT
    elif isinstance(first, _ConvTransposeNd):
        right = transposed_filters(right, first)
    elif isinstance(module, LowRankEmbedding):
        right = right.mT
    for layer, value in ((first, right), (second, left)):
        target = layer._parameters["weight"]
        assert target is not None
        target.copy_(value.reshape(target.shape))


def _answer_for_(pair: nn.Sequential, module: nn.Module, weight: Tensor) -> None:
    """Give a pair what code may read of the layer before: its sizes, ``weight.dtype``."""
    for name, value in vars(module).items():
        if not name.startswith("_") and isinstance(value, int | float | str | tuple):
            vars(pair).setdefault(name, value)
    pair.register_buffer("weight", weight.detach(), persistent=False)
