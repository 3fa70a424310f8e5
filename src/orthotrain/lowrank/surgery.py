"""Change the form of a trained model in place: plain dense layers, or two plain layers each."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from orthotrain._doors import checked
from orthotrain._sharded import GATHER_FIRST, require_whole
from orthotrain.layers._factors import (
    LowRankModule,
    hold_dense_,
    holds_pair,
    weight_parameter,
)
from orthotrain.layers._parameters import resize_parameter_
from orthotrain.layers.low_rank import LowRankLinear, LowRankTransposedLinear
from orthotrain.linalg.decompose import widest_dtype
from orthotrain.lowrank.following import factored_weights

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
    return model


@checked
def to_factored(model: nn.Module) -> nn.Module:
    """Turn low-rank layers into two plain layers each, for deployment, in place.

    ``u @ core`` folds into one factor; trained factors are taken as they are. So a layer stores
    ``k (m + n)`` numbers. A layer for which that is not less than the dense weight becomes dense,
    and so does one whose weight torch's own code reads by name: attention projections and the
    linear layers inside
    ``nn.TransformerEncoderLayer``, ``nn.TransformerDecoderLayer`` and ``nn.MultiheadAttention``.

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
                tied = first_of_weight.setdefault(id(weight_parameter(child, "weight")), pair)
                for layer, same in zip(pair, tied, strict=True):
                    layer._parameters["weight"] = same._parameters["weight"]
            setattr(parent, name, pairs[id(child)])
    return to_dense(model)


@torch.no_grad()
def _product(module: LowRankModule, weight: str) -> Tensor:
    """The dense weight, multiplied in float64 and rounded once."""
    factors = module.pair_of(weight) if holds_pair(module, weight) else module.factors(weight)
    dtype, device = factors[0].dtype, factors[0].device
    exact = widest_dtype(device)
    product = reduce(torch.matmul, (f.to(exact) for f in factors))
    return product.reshape(module.layout(module, weight).shape).to(dtype)


def _pays_as_two_layers(module: LowRankModule) -> bool:
    """Whether two plain layers hold fewer numbers than one; never for packed projections."""
    if module.weight_names != ("weight",):
        return False
    layout = module.layout(module, "weight")
    return module.rank * (layout.m + layout.n) < layout.m * layout.n


@torch.no_grad()
def _two_layers(module: LowRankModule) -> nn.Sequential:
    """A layer by ``vh`` into ``k`` features or channels, and one by ``u @ core`` out of them."""
    left, vh = module.two_factors()
    kind: dict[str, object] = {"device": left.device, "dtype": left.dtype}
    k = module.rank
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
