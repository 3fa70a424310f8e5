"""A low-rank model's parameters as those of the dense model: for penalties that choose by name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from orthotrain._doors import checked
from orthotrain._sharded import GATHER_FIRST, require_whole
from orthotrain.layers._factors import LowRankModule, is_factored, parameter_name
from orthotrain.methods.select import named_modules_clean


@checked
def dense_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values as ``named_parameters()`` of the dense model gives them.

    A low-rank layer's parameter is called ``core`` or ``pair``. A penalty on all parameters with
    "weight" in their name no longer sees it. Here it comes as the weight it stands for.

    Args:
        model: Dense or low-rank, wrapped or not.

    Yields:
        Pairs of clean name and tensor, each parameter once. A weight that is held in factors is
        multiplied out, ``(m, n)`` or in the shape of the dense layer's, and differentiable in the
        parameter. It is made anew each time, and writing into it changes nothing. Every other
        tensor is the Parameter itself.

    Raises:
        ConfigError: A layer with frozen bases is sharded: its core is a DTensor, its bases are not.

    Example:
        >>> from orthotrain import compress
        >>> model = compress(nn.Sequential(nn.Linear(8, 8)), rank_rtol=0.5, only_if_cheaper=False)
        >>> [(name, tuple(value.shape)) for name, value in dense_parameters(model)]
        [('0.weight', (8, 8)), ('0.bias', (8,))]
    """
    seen: set[int] = set()
    if any(isinstance(module, LowRankModule) and module._buffers for module in model.modules()):
        require_whole("dense_parameters", model, GATHER_FIRST)
    for name, module in named_modules_clean(model):
        weights = {}
        if isinstance(module, LowRankModule):
            held = (weight for weight in module.weights_of(module) if is_factored(module, weight))
            weights = {parameter_name(module, weight): weight for weight in held}
        for own, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            weight = weights.get(own)
            value = parameter if weight is None else module.materialized(weight)  # type: ignore[operator]
            yield f"{name}.{weight or own}".lstrip("."), value
