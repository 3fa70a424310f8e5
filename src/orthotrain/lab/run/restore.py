"""From a checkpoint file back to tensors or to a network.

A checkpoint says under ``network`` how: ``{"build": "module:function", "settings": {...},
"weights": key, "prefix": text}``. ``settings`` are plain keyword arguments of the function,
``weights`` is the part of the training that holds the state dict, and ``prefix`` begins those of
its names that count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.lab.named import named
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lowrank import restore_structure

Build = TypeVar("Build", bound=Callable[..., nn.Module])
_MARK = "_rebuilds_from_checkpoints"


def rebuilds(function: Build) -> Build:
    """Mark a function that a checkpoint may name to rebuild its network; no other is called."""
    setattr(function, _MARK, True)
    return function


def may_rebuild(function: object) -> bool:
    """Whether a function has the mark."""
    return bool(getattr(function, _MARK, False))


def network_entry(
    function: Callable[..., nn.Module],
    settings: Mapping[str, Any],
    *,
    weights: str = "model",
    prefix: str = "",
) -> dict[str, Any]:
    """What a checkpoint says of its network.

    Args:
        function: Marked by :func:`rebuilds`.
        settings: Its keyword arguments, plain values.
        weights: Part of the training that holds the state dict.
        prefix: Begins those of its names that count.
    """
    return {
        "build": f"{function.__module__}:{function.__qualname__}",
        "settings": dict(settings),
        "weights": weights,
        "prefix": prefix,
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a checkpoint of a run.

    Of a generator those of its averaged copy, which is the one that is shown and scored.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind.
    """
    return _weights(load_checkpoint(path))


def read_network(path: Path) -> nn.Module:
    """The trained network of a run's checkpoint, low-rank layers as they were.

    Raises:
        CheckpointError: The file is missing or damaged, or nothing here rebuilds its network.
    """
    saved = load_checkpoint(path)
    network = saved.get("network", {})
    if "build" not in network:
        raise CheckpointError(
            f"{path} does not say which function rebuilds its network: an earlier version wrote "
            "it; use that version"
        )
    try:
        build = named(network["build"])
    except ConfigError as error:
        raise CheckpointError(
            f"{path} names a function that rebuilds its network, and {error}; run this in the "
            "folder of its experiment"
        ) from error
    if not may_rebuild(build):
        raise CheckpointError(
            f"{path} names {network['build']}, which is not marked as a function that rebuilds "
            "networks; see orthotrain.lab.run.restore.rebuilds"
        )
    weights = _weights(saved)
    try:
        model: nn.Module = build(**network["settings"])
        restore_structure(model, weights)
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} names {network['build']}, which does not rebuild its network "
            f"({type(error).__name__}: {error}); use the version of orthotrain that wrote it"
        ) from error
    return model


def _weights(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        network = saved["network"]
        part, prefix = saved["training"][network["weights"]], network["prefix"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint does not say which of its parts holds the weights ({error} is "
            "missing): an earlier version wrote it; use that version"
        ) from error
    return {k.removeprefix(prefix): value for k, value in part.items() if k.startswith(prefix)}
