"""Layers of PEFT's adapters, and layers that have some: why neither is cut."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

_ADAPTER: Final = "an adapter of PEFT, low-rank as it is"
_ADAPTED: Final = (
    "has adapters of PEFT, and merging them into factors would lose them; call "
    "merge_and_unload() first, and cut what that returns"
)


def adapted(model: nn.Module) -> dict[int, str]:
    """Why a module stays as it is, by ``id``; PEFT is known by what its layers are called."""
    reasons: dict[int, str] = {}
    for module in model.modules():
        names: Any = getattr(module, "adapter_layer_names", ())
        children = {name: module._modules.get(name) for name in ("base_layer", *names)}
        if not names or children["base_layer"] is None:
            continue
        for name, child in children.items():
            reason = _ADAPTED if name == "base_layer" else _ADAPTER
            reasons |= dict.fromkeys(map(id, child.modules() if child is not None else ()), reason)
    return reasons
