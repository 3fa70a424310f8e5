"""Change the form of a trained model in place: plain dense layers, or two plain layers each."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from orthotrain._doors import checked
from orthotrain._resized import left_model
from orthotrain._sharded import GATHER_FIRST, require_whole
from orthotrain.layers._factors import (
    LowRankModule,
    hold_dense_,
    holds_pair,
    weight_parameter,
)
from orthotrain.layers._parameters import resize_parameter_
from orthotrain.layers.low_rank import LowRankLinear, LowRankTransposedLinear
from orthotrain.layers.low_rank_conv_transpose import transposed_filters
from orthotrain.layers.low_rank_embedding import LowRankEmbedding
from orthotrain.linalg.decompose import widest_dtype
from orthotrain.lowrank.following import factored_weights
from orthotrain.lowrank.plain import leave_plain_
from orthotrain.lowrank.pretrained import refuse_saving

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_READS_WEIGHTS_BY_NAME = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


@checked
def to_dense(model: nn.Module) -> nn.Module:
    """Merge every low-rank layer into a plain dense one, in place.

    The modules keep their identity and return to their own class; the Parameter object of the
    core or the pair becomes the dense weight. Meant for after training: an optimizer that goes
    on drops its state of these weights at its next step, with a warning.

    What else this library has put on the model goes, too: hooks of ``follow``, ``.compression``,
    ``orthogonal_weight``, which becomes a plain Parameter of its present value. So the model
    pickles, and unpickles where this library is not installed, unless it has other layers of it.
    To follow checkpoints again, call ``follow``.

    Args:
        model: A model with or without low-rank layers.

    Returns:
        The same model; its outputs agree to rounding.

    Raises:
        ConfigError: The model is sharded over processes.
    """
    require_whole("to_dense", model, GATHER_FIRST)
    merged: set[int] = set()
    for module, weight in factored_weights(model):
        parameter = weight_parameter(module, weight)
        assert parameter is not None
        if id(parameter) not in merged:
            merged.add(id(parameter))
            dense = _product(module, weight)
            hold_dense_(module, weight)
            resize_parameter_(parameter, dense)
        else:
            hold_dense_(module, weight)
    leave_plain_(model)
    return model


@checked
def to_factored(model: nn.Module) -> nn.Module:
    """Turn low-rank layers into two plain layers each, for deployment, in place.

    ``u @ core`` folds into one factor; trained factors are taken as they are. So a layer stores
    ``k (m + n)`` numbers. A layer for which that is not less than the dense weight becomes dense,
    and so does one whose weight torch's own code reads by name: attention projections, recurrent
    layers, and the linear layers inside ``nn.TransformerEncoderLayer``,
    ``nn.TransformerDecoderLayer`` and ``nn.MultiheadAttention``.

    An optimizer that held the weights of a layer that became two warns at its next step: it does
    not train the new ones. What this library has put on the model goes, as for ``to_dense``.
    ``save_pretrained`` of a model of Transformers is refused from then on: nothing could read it.
    Save the low-rank model before, or pickle this one.

    Args:
        model: A model with or without low-rank layers.

    Returns:
        The same model with ``nn.Sequential`` pairs in the place of low-rank layers; the model
        itself becomes a dense layer again where it is one. Outputs agree to rounding.

    Raises:
        ConfigError: The model is sharded over processes.
    """
    require_whole("to_factored", model, GATHER_FIRST)
    pairs: dict[int, nn.Sequential] = {}
    first_of_weight: dict[int, nn.Sequential] = {}
    for parent in list(model.modules()):
        if isinstance(parent, _READS_WEIGHTS_BY_NAME):
            continue
        for name, child in list(parent._modules.items()):
            if not (isinstance(child, LowRankModule) and _pays_as_two_layers(child)):
                continue
            if id(child) not in pairs:
                pair = pairs[id(child)] = _two_layers(child)
                parameter = weight_parameter(child, "weight")
                assert parameter is not None
                tied = first_of_weight.setdefault(id(parameter), pair)
                for layer, same in zip(pair, tied, strict=True):
                    layer._parameters["weight"] = same._parameters["weight"]
                left_model(parameter)
            setattr(parent, name, pairs[id(child)])
    to_dense(model)
    refuse_saving(model, {*pairs.values()})
    return model


@torch.no_grad()
def _product(module: LowRankModule, weight: str) -> Tensor:
    """The dense weight, multiplied in float64 and rounded once."""
    factors = module.pair_of(weight) if holds_pair(module, weight) else module.factors(weight)
    dtype, device = factors[0].dtype, factors[0].device
    exact = widest_dtype(device)
    product = reduce(torch.matmul, (f.to(exact) for f in factors))
    return module.layout(module, weight).tensor(product).to(dtype)


def _pays_as_two_layers(module: LowRankModule) -> bool:
    """Whether two plain layers hold fewer numbers than one; never for packed projections."""
    if module.weights_of(module) != ("weight",):
        return False
    layout = module.layout(module, "weight")
    return module.rank * (layout.m + layout.n) < layout.m * layout.n


@torch.no_grad()
def _two_layers(module: LowRankModule) -> nn.Sequential:
    """A layer by ``vh`` into ``k`` features or channels, and one by ``u @ core`` out of them."""
    left, vh = module.two_factors()
    kind: dict[str, Any] = {"device": left.device, "dtype": left.dtype}
    k = module.rank
    bias = module._parameters.get("bias")
    first: nn.Module
    second: nn.Module
    if isinstance(module, LowRankTransposedLinear):
        left, vh = vh.mT, left.mT
    if isinstance(module, nn.modules.conv._ConvNd):
        groups = module.groups
        first = module._dense_class(
            module.in_channels, groups * k, module.kernel_size, module.stride, module.padding,
            dilation=module.dilation, groups=groups, bias=False,
            padding_mode=module.padding_mode, **kind,
        )  # fmt: skip
        if isinstance(first, _ConvTransposeNd):
            first.output_padding, vh = module.output_padding, transposed_filters(vh, first)
        second = _CONV[len(module.kernel_size)](
            groups * k, module.out_channels, 1, groups=groups, bias=bias is not None, **kind
        )
    elif isinstance(module, LowRankEmbedding):
        first = nn.Embedding(module.num_embeddings, k, module.padding_idx, **kind)
        second, vh = nn.Linear(k, left.shape[0], bias=False, **kind), vh.mT
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
