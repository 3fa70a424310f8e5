"""Change the form of a trained model in place: plain dense layers, or two plain layers each."""

from __future__ import annotations

import warnings
from functools import reduce

import torch
from torch import Tensor, nn

from orthotrain._doors import checked
from orthotrain._resized import left_model
from orthotrain._sharded import GATHER_FIRST, require_whole
from orthotrain.errors import OrthotrainWarning
from orthotrain.layers._factors import (
    LowRankModule,
    hold_dense_,
    holds_pair,
    weight_parameter,
)
from orthotrain.layers._parameters import resize_parameter_
from orthotrain.linalg.decompose import widest_dtype
from orthotrain.lowrank.following import factored_weights
from orthotrain.lowrank.plain import leave_plain_
from orthotrain.lowrank.readers import readers
from orthotrain.lowrank.two_layers import put_pairs_

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

    The pair still has the sizes of the layer before, and a ``weight`` that tells dtype and device.
    A layer whose values some other code in the model reads, ``self.proj.weight`` or
    ``self.proj.bias`` in the source of what ``forward`` calls, becomes dense, with a warning that
    names it. All other code that computes with ``weight`` gets one NaN without dimensions: its
    result is NaN, or an error, and never a wrong number. Frozen weights stay frozen.

    An optimizer that held the weights of a layer that became two warns at its next step: it does
    not train the new ones. What this library has put on the model goes, as for ``to_dense``, but
    ``save_pretrained`` of a model of Transformers still says in ``config.json`` what it wrote.

    Args:
        model: A model with or without low-rank layers.

    Returns:
        The same model with ``nn.Sequential`` pairs in the place of low-rank layers; the model
        itself becomes a dense layer again where it is one. Outputs agree to rounding.

    Raises:
        ConfigError: The model is sharded over processes.

    Warns:
        OrthotrainWarning: Layers became dense because other code reads their weights.
    """
    require_whole("to_factored", model, GATHER_FIRST)
    paying = _paying_as_two_layers(model)
    if dense := readers(model, paying):
        warnings.warn(
            "to_factored made layers dense whose weights other code reads: "
            + "; ".join(f"{name} ({reader})" for name, reader in dense.items())
            + ". Deploy the low-rank model as it is where they have to stay small",
            OrthotrainWarning,
            stacklevel=3,
        )
    ranks = {name: layer.rank for name, layer in paying.items() if name not in dense}
    for parameter in put_pairs_(model, ranks):
        left_model(parameter)
    to_dense(model)
    return model


@torch.no_grad()
def _product(module: LowRankModule, weight: str) -> Tensor:
    """The dense weight, multiplied in float64 and rounded once."""
    factors = module.pair_of(weight) if holds_pair(module, weight) else module.factors(weight)
    dtype, device = factors[0].dtype, factors[0].device
    exact = widest_dtype(device)
    product = reduce(torch.matmul, (f.to(exact) for f in factors))
    return module.layout(module, weight).tensor(product).to(dtype)


def _paying_as_two_layers(model: nn.Module) -> dict[str, LowRankModule]:
    """Layers that two plain ones can stand for with fewer numbers, by name."""
    found = {}
    for name, parent in model.named_modules(remove_duplicate=False):
        if not isinstance(parent, _READS_WEIGHTS_BY_NAME):
            for own, child in parent._modules.items():
                if isinstance(child, LowRankModule) and _pays_as_two_layers(child):
                    found[f"{name}.{own}".lstrip(".")] = child
    return found


def _pays_as_two_layers(module: LowRankModule) -> bool:
    """Whether two plain layers hold fewer numbers than one; never for packed projections."""
    if module.weights_of(module) != ("weight",):
        return False
    layout = module.layout(module, "weight")
    return module.rank * (layout.m + layout.n) < layout.m * layout.n
