"""Put whitening after a named layer of an existing model."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel

from orthotrain._doors import checked
from orthotrain.errors import ConfigError
from orthotrain.layers.decorrelated_batch_norm import (
    DecorrelatedBatchNorm,
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
)

_BY_DIMS = {
    1: DecorrelatedBatchNorm1d,
    2: DecorrelatedBatchNorm2d,
    3: DecorrelatedBatchNorm3d,
}


@checked
def insert_whitening(
    model: nn.Module, *, after: str, replaces: str | None = None, **settings: Any
) -> nn.Module:
    """Put a ``DecorrelatedBatchNorm`` after a named layer of a model, in place.

    Args:
        model: Changed in place; before it is wrapped for several processes.
        after: Name of a linear layer or convolution as in ``model.named_modules()``. Its kind
            decides between the layers for 1-D, 2-D and 3-D.
        replaces: Name of the norm that whitening takes the place of. Left out, a norm of the same
            width directly after the layer in an ``nn.Sequential`` is replaced; where there is
            none, the layer becomes ``nn.Sequential(layer, whitening)`` under its own name.
        settings: As ``DecorrelatedBatchNorm2d`` takes them.

    Returns:
        ``model`` itself.

        A norm that is replaced hands over its ``weight`` and ``bias`` (the Parameters
        themselves, so an optimizer goes on training them), ``momentum``, ``affine``,
        ``track_running_stats``, device, dtype, mode, and its running statistics: the running
        variances become the diagonal of the running covariance, so in evaluation the model
        computes what it did, ``ridge`` in the place of ``eps``, until new batches come in. A
        ``SyncBatchNorm`` hands over its process group. ``settings`` come first.

        A ``DecorrelatedBatchNorm`` that is replaced hands over all of its settings and its running
        covariance as it is. Where ``settings`` ask for other groups, these copy their
        blocks of it, with zero between channels that were whitened apart. Where they name a
        ``method``, ``gradient`` and ``iterations`` of the old one are dropped.

        Where no norm is replaced, the new ``weight`` and ``bias`` are unknown to an optimizer
        that exists already: add them with ``optimizer.add_param_group``, or pass
        ``affine=False``. Parameters of the layer keep their identity; where it was wrapped, their
        names gain ``.0``.

    Raises:
        ConfigError: A name that the model does not have, a layer without channels, a norm of
            another width or kind, or a model wrapped for data-parallel training.
    """
    if isinstance(model, DistributedDataParallel | DataParallel):
        raise ConfigError(
            f"insert_whitening needs the bare model, got a {type(model).__name__}; insert first "
            f"and wrap afterwards, or the wrapper does not see the new parameters"
        )
    layer = _named(model, after)
    dims, channels = _channels(after, layer)
    norm = _norm_to_replace(model, after, layer, replaces, channels)
    if norm is None:
        _require_called(model, after, layer)
    whitening = _whitening(layer, dims, channels, norm, settings)
    whitening.train(layer.training if norm is None else norm.training)
    if norm is None:
        _exchange(model, layer, nn.Sequential(layer, whitening).train(layer.training))
    else:
        _exchange(model, norm, whitening)
    return model


def _named(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    del modules[""]
    if name not in modules:
        names = list(modules)
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
        close += [n for n in names if name and name in n and n not in close][:3]
        shown = "close to it: " if close else "the model has: "
        shown += ", ".join(close or names[:8]) or "none at all"
        raise ConfigError(
            f"insert_whitening needs the name of a layer inside the model, got {name!r}; {shown}"
        )
    return modules[name]


def _channels(name: str, layer: nn.Module) -> tuple[int, int]:
    """Dimensions of space (1 for a linear layer) and channels of what a layer puts out."""
    channels = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    kernel = getattr(layer, "kernel_size", (1,))
    dims = len(kernel) if isinstance(kernel, tuple) else 2
    if not isinstance(channels, int) or dims not in _BY_DIMS:
        raise ConfigError(
            f"insert_whitening needs a linear layer or convolution for after, got {name!r}, a "
            f"{type(layer).__name__}; name a layer that has out_features or out_channels"
        )
    return dims, channels


def _require_called(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Refuse to wrap a layer whose weight another module reads instead of calling it."""
    for parent in model.modules():
        if isinstance(parent, nn.MultiheadAttention) and layer in parent.children():
            raise ConfigError(
                f"insert_whitening needs a layer that the model calls, got {name!r}; its "
                f"{type(parent).__name__} only reads the weight; name the layer after the attention"
            )


def _norm_to_replace(
    model: nn.Module, after: str, layer: nn.Module, replaces: str | None, channels: int
) -> nn.Module | None:
    if replaces is not None:
        norm = _named(model, replaces)
        width = _width(norm)
        if width != channels:
            found = "no norm over channels" if width is None else f"a norm of {width} channels"
            raise ConfigError(
                f"insert_whitening needs a norm of {channels} channels, the output of {after!r}, "
                f"got {replaces!r}, a {type(norm).__name__}: {found}; name the norm that follows "
                f"{after!r}"
            )
        return norm
    for parent in model.modules():
        if isinstance(parent, nn.Sequential):
            children = list(parent)
            for i, child in enumerate(children[:-1]):
                if child is layer and _width(children[i + 1]) == channels:
                    return children[i + 1]
    return None


def _width(module: nn.Module) -> int | None:
    if isinstance(module, _NormBase | DecorrelatedBatchNorm):
        return int(module.num_features)
    return module.num_channels if isinstance(module, nn.GroupNorm) else None


def _whitening(
    layer: nn.Module, dims: int, channels: int, norm: nn.Module | None, settings: dict[str, Any]
) -> DecorrelatedBatchNorm:
    # Of the norm first: beside a layer in half precision it often stays in float32.
    tensors = [t for m in (norm, layer) if m is not None for t in m.state_dict().values()]
    tensor = next((t for t in tensors if t.is_floating_point()), None)
    taken: dict[str, Any] = {}
    if tensor is not None:
        taken = {"device": tensor.device, "dtype": tensor.dtype}
    for name in ("affine", "momentum", "track_running_stats"):
        if hasattr(norm, name):
            taken[name] = getattr(norm, name)
    if isinstance(norm, nn.SyncBatchNorm):
        taken |= {"synchronize": True, "process_group": norm.process_group}
    if isinstance(norm, DecorrelatedBatchNorm):
        taken |= _settings_of(norm, settings)
    whitening = _BY_DIMS[dims](channels, **(taken | settings))
    if norm is not None:
        _take_over(whitening, norm)
    return whitening


def _settings_of(norm: DecorrelatedBatchNorm, said: dict[str, Any]) -> dict[str, Any]:
    """Settings that only whitening has, less those that what was said decides anew."""
    names = {"ridge", "synchronize", "process_group", "groups", "method", "gradient", "iterations"}
    if "group_size" in said:
        names.remove("groups")
    if "method" in said:
        names -= {"gradient", "iterations"}
    return {name: getattr(norm, name) for name in names}


@torch.no_grad()
def _take_over(whitening: DecorrelatedBatchNorm, norm: nn.Module) -> None:
    if whitening.affine:
        for name in ("weight", "bias"):
            parameter = getattr(norm, name, None)
            if parameter is not None:
                setattr(whitening, name, parameter)
    mean, blocks = getattr(norm, "running_mean", None), _running_covariance(norm)
    if mean is None or blocks is None or whitening.running_mean is None:
        return
    assert whitening.running_covariance is not None
    assert whitening.num_batches_tracked is not None
    whitening.running_mean.copy_(mean)
    whitening.running_covariance.copy_(_regrouped(blocks, whitening.groups))
    whitening.num_batches_tracked.copy_(norm.get_buffer("num_batches_tracked"))


def _running_covariance(norm: nn.Module) -> Tensor | None:
    """``(groups, c, c)``; of a norm that keeps variances, every channel is a group."""
    if isinstance(norm, DecorrelatedBatchNorm):
        return norm.running_covariance
    variance: Tensor | None = getattr(norm, "running_var", None)
    return None if variance is None else variance.view(-1, 1, 1)


def _regrouped(blocks: Tensor, groups: int) -> Tensor:
    """Covariances of other groups of the same channels, zero where nothing is known."""
    if len(blocks) == groups:
        return blocks
    whole = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    size = len(whole) // groups
    return torch.stack([whole[i : i + size, i : i + size] for i in range(0, len(whole), size)])


def _exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` hangs in the model; a layer that is shared stays shared."""
    for parent in list(model.modules()):
        if parent is new:
            continue
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
