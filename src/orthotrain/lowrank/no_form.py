"""Layers that hold a matrix and have no low-rank form here: which, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Final, Literal, get_args

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from orthotrain.layers._factors import LowRankModule, low_rank_class_of, weight_parameter
from orthotrain.methods.select import named_modules_clean

#: Kinds of layers that are cut on request.
Kind = Literal["lstm", "gru", "rnn", "embedding", "transposed"]
KINDS: Final = get_args(Kind)

COMPUTED: Final = (
    "its weight is computed from other parameters (weight_norm, spectral_norm, pruning)"
)

#: Why an embedding and a head that share one weight stay dense, both of them.
TIED_HEAD: Final = (
    "an embedding and a head that share one weight are never cut, since they read it in "
    "opposite order"
)

_CONVERTED_CLASSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
_WHY: Final[dict[type[nn.Module], str]] = {
    nn.Bilinear: "its weight is no matrix",
    nn.EmbeddingBag: "a look-up reads single rows",
}


def is_layer(module: nn.Module) -> bool:
    """Whether this is a layer of a kind one would expect to be converted."""
    expected = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.Bilinear)
    low_rank_class = low_rank_class_of(module)
    held = low_rank_class is not None and not low_rank_class.on_request
    return held or isinstance(module, expected)


def left_as_they_are(
    model: nn.Module, named: Set[int], *, also: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Name and reason of each layer with a weight that is not held low-rank, whatever its shape.

    Args:
        model: The inner model.
        named: ``id`` of parameters that are named anyway: of an embedding tied to a head.
        also: Kinds of layers that are asked for; others of these kinds are named.
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
            weight_parameter(module, weight) is None for weight in low_rank_class.weights_of(module)
        ):
            yield name, COMPUTED
        elif not is_asked_for(low_rank_class, also) and _has_none_of(module, named):
            kind = low_rank_class.__name__.removeprefix("LowRank")
            yield name, f"{kind} is cut on request: also=[{low_rank_class.on_request!r}]"


def acts_on_rows(module: nn.Module) -> str | None:
    """Why an embedding that does something to single rows stays dense; None of any other layer."""
    if not isinstance(module, nn.Embedding):
        return None
    if module.max_norm is None and not module.sparse and not module.scale_grad_by_freq:
        return None
    return (
        "an embedding that rescales its rows (max_norm), scales their gradients by how often "
        "they are read (scale_grad_by_freq), or has sparse gradients"
    )


def is_asked_for(low_rank_class: type[LowRankModule], also: Sequence[str]) -> bool:
    """Whether layers of this class are taken: always, or because their kind is named."""
    return not low_rank_class.on_request or low_rank_class.on_request in also


def _has_none_of(module: nn.Module, named: Set[int]) -> bool:
    return not any(id(p) in named for p in module._parameters.values())


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
    if not is_layer(module) and not _has_none_of(module, named):
        return None
    base = next((c for c in _CONVERTED_CLASSES if isinstance(module, c)), None)
    if base is not None:
        why = f"a subclass of {base.__name__} may compute something else"
    return f"{kind} has no low-rank form" + (f": {why}" if why else "")


def _is_quantized(module: nn.Module) -> bool:
    """A layer of torch's quantized packages, which are not imported for this."""
    return any(".quantized." in f"{cls.__module__}." for cls in type(module).__mro__)
