"""Layers that hold a matrix and have no low-rank form here: which, and why."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Final

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from orthotrain.layers._factors import low_rank_class_of, weight_parameter
from orthotrain.methods.select import named_modules_clean

COMPUTED: Final = (
    "its weight is computed from other parameters (weight_norm, spectral_norm, pruning)"
)

_CONVERTED_CLASSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
_WHY: Final[dict[type[nn.Module], str]] = {
    nn.RNNBase: "torch's recurrent kernels read whole weights",
    nn.RNNCellBase: "torch's recurrent kernels read whole weights",
    nn.Bilinear: "its weight is no matrix",
    nn.Embedding: "a look-up reads single rows",
    nn.EmbeddingBag: "a look-up reads single rows",
}


def is_layer(module: nn.Module) -> bool:
    """Whether this is a layer of a kind one would expect to be converted."""
    expected = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.Bilinear)
    return isinstance(module, expected) or low_rank_class_of(module) is not None


def layers_without_form(model: nn.Module, named: Set[int]) -> Iterator[tuple[str, str]]:
    """Name and reason of each layer with a weight that cannot be held low-rank.

    Args:
        model: The inner model.
        named: ``id`` of parameters that are named anyway: of an embedding tied to a head.
    """
    inside = ""  # a quantized layer keeps its weight in children of its own
    for name, module in named_modules_clean(model):
        if inside and name.startswith(inside):
            continue
        low_rank_class = low_rank_class_of(module)
        if low_rank_class is None:
            if (reason := _reason(module, named)) is not None:
                yield name, reason
                inside = f"{name}." if _is_quantized(module) else ""
        elif is_parametrized(module) or all(
            weight_parameter(module, weight) is None for weight in low_rank_class.weight_names
        ):
            yield name, COMPUTED


def _reason(module: nn.Module, named: Set[int]) -> str | None:
    kind = type(module).__name__
    if _is_quantized(module):
        return f"{kind} has no low-rank form: its weight is quantized"
    why = next((why for cls, why in _WHY.items() if isinstance(module, cls)), None)
    if not is_layer(module) and why is None:
        return None
    if is_parametrized(module):
        return COMPUTED
    if isinstance(module, LazyModuleMixin):
        return f"{kind} has no weight yet; run a batch through the model before"
    if not is_layer(module) and any(id(p) in named for p in module._parameters.values()):
        return None
    base = next((c for c in _CONVERTED_CLASSES if isinstance(module, c)), None)
    if base is not None:
        why = f"a subclass of {base.__name__} may compute something else"
    return f"{kind} has no low-rank form" + (f": {why}" if why else "")


def _is_quantized(module: nn.Module) -> bool:
    """A layer of torch's quantized packages, which are not imported for this."""
    return any(".quantized." in f"{cls.__module__}." for cls in type(module).__mro__)
