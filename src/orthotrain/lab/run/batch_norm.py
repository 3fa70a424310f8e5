"""Batch statistics over all processes: a part of a batch is normalised as the whole would be.

torch's ``SyncBatchNorm`` does this on GPUs only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from orthotrain.layers._channel_groups import summed_over_processes
from orthotrain.layers.decorrelated_batch_norm import DecorrelatedBatchNorm


class _OverProcesses(nn.modules.batchnorm._NormBase):
    """The training pass of a batch norm, with mean and variance over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """As the layer without processes, on the union of all parts."""
        if not self.training and self.running_mean is not None:
            return cast("Tensor", super().forward(x))
        cast("Any", self)._check_input_dim(x)
        with torch.autocast(x.device.type, enabled=False):
            y = self._normalised(x.to(torch.promote_types(x.dtype, torch.float32)))
        return y.to(x.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        places = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        here = x.new_tensor([x.numel() / x.shape[1]])
        sums = summed_over_processes(torch.cat([x.sum(places), here]), None)
        samples = sums[-1].detach()
        mean = sums[:-1] / samples
        centred = x - mean.view(shape)
        variance = summed_over_processes(centred.square().sum(places), None) / samples
        self._keep(mean.detach(), variance.detach() * (samples / (samples - 1)))
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y

    def _keep(self, mean: Tensor, unbiased: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None:
            return
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class _BatchNorm1d(_OverProcesses, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_OverProcesses, nn.BatchNorm2d):
    pass


class _BatchNorm3d(_OverProcesses, nn.BatchNorm3d):
    pass


_SHARED: Final[Mapping[type[nn.Module], type[nn.Module]]] = {
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.BatchNorm3d: _BatchNorm3d,
}


def share_statistics(model: nn.Module) -> None:
    """Let every batch norm and whitening layer of a model train on statistics of all processes.

    Layers stay the same objects, with the same parameters, buffers and names.
    """
    for module in model.modules():
        if isinstance(module, DecorrelatedBatchNorm):
            module.synchronize = True
        elif (kind := _SHARED.get(type(module))) is not None:
            module.__class__ = kind
