"""Models that several processes hold in parts: no process has a whole weight to look at or cut.

Wrappers are known by the names of their classes: they are slow to import, or not installed.
"""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from orthotrain.errors import ConfigError

_DDP: Final = (
    "under DistributedDataParallel, where every process holds all weights (docs/sharding.md)"
)
#: What to do where whole weights are read.
USE_DDP: Final = f"Train {_DDP}"
#: What to do instead of a cut.
CUT_BEFORE: Final = f"Cut before it is sharded, with compress or load; or train {_DDP}"
#: What to do about a structure that comes from a file.
SHARD_AFTER: Final = "Call it before the model is sharded (docs/sharding.md)"
#: What to do about values that are wanted in one place.
GATHER_FIRST: Final = (
    "Gather its values first and load them into a model that is not sharded: with "
    "get_model_state_dict of torch.distributed.checkpoint and full_state_dict=True, or with "
    "zero_to_fp32.py of DeepSpeed (docs/sharding.md)"
)

_FSDP1: Final = "FSDP1 (FullyShardedDataParallel)"
_FSDP2: Final = "FSDP2 (fully_shard)"
_DEEPSPEED: Final = "DeepSpeed"
_CLASSES: Final = {  # by package and name of the class
    ("torch", "FullyShardedDataParallel"): _FSDP1,
    ("fairscale", "FullyShardedDataParallel"): "fairscale's FullyShardedDataParallel",
    ("torch", "FSDPModule"): _FSDP2,
    ("deepspeed", "DeepSpeedEngine"): _DEEPSPEED,
}


def sharding_of(model: nn.Module) -> str | None:
    """Who split a model over processes, in words; None where every process holds all of it.

    Looked for around the model and in each part of it. DeepSpeed counts at every stage.
    """
    modules = list(model.modules())
    for module in modules:
        kinds = ((_package(cls), cls.__name__) for cls in type(module).__mro__)
        if (kind := next((_CLASSES[each] for each in kinds if each in _CLASSES), None)) is not None:
            return kind
    # torch marks what is inside a wrapper that cannot be seen from here.
    managed = any(getattr(module, "_is_fsdp_managed_module", False) for module in modules)
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            return f"{_DEEPSPEED} (ZeRO-3)"
        if hasattr(parameter, "device_mesh"):
            return _FSDP2 if managed else "DTensor (tensor parallel, parallelize_module)"
    return _FSDP1 if managed else None


def is_flat(model: nn.Module) -> bool:
    """Whether what a process holds of a sharded model are no tensors of the weights' shapes."""
    in_shape = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
    return not in_shape and sharding_of(model) is not None


def require_whole(what: str, model: nn.Module, way: str = CUT_BEFORE) -> None:
    """Refuse a model that several processes hold in parts.

    Args:
        what: Who asks, for the message.
        model: Wrapped or not.
        way: What to do instead.

    Raises:
        ConfigError: It is one.
    """
    if (kind := sharding_of(model)) is not None:
        raise ConfigError(
            f"{what} needs a model of which every process holds all weights, got one that is "
            f"sharded: {kind}. {way}"
        )


def require_own_steps(what: str, model: nn.Module, optimizer: Any) -> None:
    """Refuse an engine that trains copies of the weights and not the model's parameters.

    Raises:
        ConfigError: ``model`` or an ``optimizer`` is of DeepSpeed.
    """
    several = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    kinds = (cls for each in (model, *several) for cls in type(each).__mro__)
    if any(cls.__module__.startswith("deepspeed.runtime.") for cls in kinds):
        raise ConfigError(
            f"{what} needs an optimizer that steps the model's own parameters, and DeepSpeed steps "
            f"flat copies of them. {CUT_BEFORE}"
        )


def require_as_attached(model: nn.Module, before: str | None) -> None:
    """Refuse the first pass and the first step of a model that was sharded after ``attach``.

    Args:
        model: The model that was given to ``attach``.
        before: What ``sharding_of`` said then.

    Raises:
        ConfigError: The methods hold weights that are no longer trained.
    """
    if (now := sharding_of(model)) != before:
        raise ConfigError(
            f"attach came before the model was sharded ({now}), so its methods hold weights that "
            f"are trained no more. {CUT_BEFORE}. Methods that need no whole weight: shard, build "
            "the optimizer, then attach"
        )


def held_by(optimizer: Any) -> set[int]:
    """``id`` of each parameter in the groups of an optimizer."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def require_trains(model: nn.Module, optimizer: Any, before: set[int]) -> None:
    """Refuse the first step of an optimizer from which the model's parameters were taken.

    Layers of the model may have been replaced: the optimizer still holds their parameters then.

    Args:
        model: The model that was given to ``attach``.
        optimizer: Whose step begins.
        before: What it held then.

    Raises:
        ConfigError: It holds none of them, nor others of the model.
    """
    if not held_by(optimizer) & (before | {id(p) for p in model.parameters()}):
        raise ConfigError(
            f"attach was given an optimizer ({type(optimizer).__name__}) that held parameters of "
            "the model, and at its first step it holds none. Did something replace them, such as "
            "DeepSpeed? Attach to the optimizer that trains the model"
        )


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]
