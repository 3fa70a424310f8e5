"""The covariance that enters a layer, formed anew in float64 from what the layer was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor, nn

from orthotrain.errors import OrthotrainError
from orthotrain.layers import GlobalCovariancePool
from orthotrain.layers.covariance_pool import place_covariance
from orthotrain.layers.decorrelated_batch_norm import DecorrelatedBatchNorm
from orthotrain.linalg.channel_covariance import channel_covariance
from orthotrain.linalg.decompose import widest_dtype
from orthotrain.linalg.rank import rounding_rtol

#: Of a layer that forms one covariance a sample, at most this many of a batch are read.
MOST_MATRICES: Final = 8

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Covariance:
    """What entered one layer in one forward pass.

    Attributes:
        matrices: ``(count, n, n)``, one per group or one per sample.
        samples: How many vectors each was averaged over; None where the layer does not say.
        ridge: What the layer adds to the diagonal.
        relative_ridge: What it adds, too, times the mean eigenvalue.
        input_dtype: Precision of what the covariance was formed of.
    """

    matrices: Tensor
    samples: int | None
    ridge: float
    relative_ridge: float
    input_dtype: torch.dtype

    @property
    def rtol(self) -> float:
        """Eigenvalues below this share of the largest are rounding.

        ``n`` times the precision the covariance was formed in, or times the square of the
        input's where that is more: rounding moves an entry of the input by a share ``eps`` of
        it, and adds the square of that to an eigenvalue.
        """
        formed = torch.finfo(self.matrices.dtype).eps
        given = torch.finfo(self.input_dtype).eps ** 2
        return rounding_rtol(self.matrices, eps=max(formed, given))


def is_spectral(module: nn.Module) -> TypeGuard[Any]:
    """Whether ``module`` forms a covariance itself and says what ridge it adds."""
    ridge = getattr(module, "ridge", None)
    return isinstance(ridge, int | float) and callable(getattr(module, "covariance", None))


def has_covariance(module: nn.Module) -> bool:
    """Whether there is a covariance to read: of a spectral layer or a plain batch norm."""
    return is_spectral(module) or isinstance(module, _BATCH_NORMS)


def place_to_look(module: nn.Module) -> tuple[nn.Module, bool]:
    """The module whose tensor is read, and whether that is its output instead of its input."""
    if _forms_as(module, GlobalCovariancePool):
        # Behind the reduction, which must not run twice: its batch norm would count the batch
        # twice, too.
        return module.get_submodule("reduce"), True
    return module, False


def covariance_of(module: nn.Module, x: Tensor) -> Covariance | None:
    """The covariance that ``module`` meets in ``x``; ``None`` where it refuses ``x``."""
    x = x.detach()
    if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        return None
    layer: Any = module
    samples: int | None
    with torch.no_grad(), torch.autocast(device_type=x.device.type, enabled=False):
        if isinstance(module, _BATCH_NORMS) or _forms_as(module, DecorrelatedBatchNorm):
            groups: int = getattr(module, "groups", 1)
            if x.shape[1] != layer.num_features:
                return None
            matrices, samples = channel_covariance(x, groups=groups), x.numel() // x.shape[1]
        elif _forms_as(module, GlobalCovariancePool):
            some = _some(x).to(widest_dtype(x.device))
            matrices, samples = place_covariance(some, shrinkage=layer.shrinkage), x[0, 0].numel()
        else:
            try:
                with _buffers_kept(module):
                    matrices, samples = _some(layer.covariance(x)), None
            except OrthotrainError:
                return None  # the layer refuses this input itself, right after this
    ridge = layer.eps if isinstance(module, _BATCH_NORMS) else layer.ridge
    relative = getattr(module, "relative_ridge", 0.0)
    return Covariance(matrices, samples, float(ridge), float(relative), x.dtype)


def _forms_as(module: nn.Module, kind: type[Any]) -> TypeGuard[Any]:
    """Whether ``module`` is of a kind whose covariance is known, and does not form another."""
    return isinstance(module, kind) and type(module).covariance is kind.covariance


def _some(matrices: Tensor) -> Tensor:
    """At most ``MOST_MATRICES`` entries, evenly spaced."""
    count = len(matrices)
    if count <= MOST_MATRICES:
        return matrices
    return matrices[[i * count // MOST_MATRICES for i in range(MOST_MATRICES)]]


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Let a layer's parts write into copies of their buffers."""
    # Other tensors, not restored values: writing into the old ones would break a graph that
    # has saved them.
    kept = [(part, dict(part._buffers)) for part in module.modules()]
    try:
        for part, buffers in kept:
            for name, buffer in buffers.items():
                part._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)
