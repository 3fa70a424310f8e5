"""The covariance that enters a layer, taken from its input during a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from orthotrain.errors import OrthotrainError

#: Of a layer that forms one covariance a sample, at most this many of a batch are read.
MOST_MATRICES: Final = 8

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Numbers held in float64 at once: on a CPU what stays in its cache (64 channels, 32x32, batch 128:
# .10 s against .18 s in one piece, one thread), elsewhere few launches for at most 128 MiB.
_CHUNK_ON_CPU = 2**18
_CHUNK = 2**24


@runtime_checkable
class SpectralLayer(Protocol):
    """A layer that takes a root of a covariance of its input and adds ``ridge`` to it first."""

    ridge: float

    def covariance(self, x: Tensor, /) -> Tensor:
        """``(count, n, n)``, without the ridge."""


@dataclass(frozen=True)
class Covariance:
    """What entered one layer in one forward pass.

    Attributes:
        matrices: ``(count, n, n)``, one a group or one a sample.
        samples: How many vectors each was averaged over.
        ridge: What the layer adds to the diagonal.
        relative_ridge: What it adds, too, times the mean eigenvalue.
        input_dtype: Precision of the layer's input.
    """

    matrices: Tensor
    samples: int
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
        return min(0.5, self.matrices.shape[-1] * max(formed, given))


def is_spectral(module: nn.Module) -> TypeGuard[Any]:
    """Whether ``module`` forms a covariance itself and says what ridge it adds."""
    return isinstance(module, SpectralLayer) and callable(module.covariance)


def has_covariance(module: nn.Module) -> bool:
    """Whether there is a covariance to read: of a spectral layer or a plain batch norm."""
    return is_spectral(module) or isinstance(module, _BATCH_NORMS)


def covariance_of(module: nn.Module, x: Tensor) -> Covariance | None:
    """The covariance that ``module`` meets in ``x``; ``None`` where it forms none of it."""
    if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        return None
    x = x.detach()
    device_type = x.device.type
    with torch.no_grad(), torch.autocast(device_type=device_type, enabled=False):
        if isinstance(module, _BATCH_NORMS):
            samples = x.numel() // x.shape[1]
            return Covariance(channel_covariance(x), samples, module.eps, 0.0, x.dtype)
        try:
            matrices = module.covariance(x.to(_wide(x)))
        except OrthotrainError:
            # The layer refuses this input itself, right after this.
            return None
    return Covariance(matrices, 0, module.ridge, getattr(module, "relative_ridge", 0.0), x.dtype)


def channel_covariance(x: Tensor, *, groups: int = 1) -> Tensor:
    """Biased covariance of the channels over batch and positions, ``(groups, c, c)``.

    In float64 where the device has it, some samples at a time.

    Args:
        x: ``(n, channels, *)``, in any memory format.
        groups: Channels are cut into this many neighbouring groups.
    """
    channels, dtype = x.shape[1], _wide(x)
    x = x.T.unsqueeze(0) if x.ndim == 2 else x.flatten(2)
    samples = x.numel() // channels
    mean = x.sum(dim=(0, 2), dtype=dtype) / samples
    total = torch.zeros(
        (groups, channels // groups, channels // groups), dtype=dtype, device=x.device
    )
    most = _CHUNK_ON_CPU if x.device.type == "cpu" else _CHUNK
    for part in x.split(max(1, most * x.shape[0] // x.numel())):
        centred = torch.empty(
            (channels, part.shape[0], part.shape[2]), dtype=dtype, device=x.device
        )
        centred.copy_(part.transpose(0, 1)).sub_(mean[:, None, None])
        rows = centred.view(groups, channels // groups, -1)
        total.baddbmm_(rows, rows.mT)
    return total / samples


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64
