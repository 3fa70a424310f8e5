"""Mean and covariance of channel groups: one matrix product, one kept activation.

Activations of any shape are seen as ``(k, c, l)``, a stack of matrices with the ``c`` channels of a
group as rows and samples as columns, so that whitening and its derivatives are batched products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How an activation ``(batch, channels, *space)`` is seen as matrices of samples.

    Attributes:
        shape: Of the activation.
        groups: Number of channel groups.
        rows: One matrix per group, over all samples. The memory then holds samples one after
            another, as channels-last and flat activations do; else there is one matrix per
            group and batch entry.
    """

    shape: torch.Size
    groups: int
    rows: bool

    @staticmethod
    def of(x: Tensor, groups: int) -> Layout:
        """The layout that copies least, and whose products are not many small ones."""
        size = x.shape[1] // groups
        places = x.shape[2:].numel()
        channels_last = x.movedim(1, -1).is_contiguous() and not x.is_contiguous()
        return Layout(x.shape, groups, rows=channels_last or places < size)

    @property
    def samples(self) -> int:
        """Values of each channel."""
        return self.shape[0] * self.shape[2:].numel()

    @property
    def size(self) -> int:
        """Channels of a group."""
        return self.shape[1] // self.groups

    def matrices(self, x: Tensor) -> Tensor:
        """``(groups, c, samples)`` or ``(batch * groups, c, places)``; a view where possible."""
        if self.rows:
            flat = x.movedim(1, -1).reshape(self.samples, self.groups, self.size)
            return flat.permute(1, 2, 0)
        return x.reshape(self.shape[0] * self.groups, self.size, self.shape[2:].numel())

    def activation(self, matrices: Tensor, like: Tensor) -> Tensor:
        """The inverse of ``matrices``, in the memory format of ``like``."""
        if not self.rows:
            return matrices.reshape(self.shape)
        flat = matrices.permute(2, 0, 1).reshape(self.shape[0], *self.shape[2:], self.shape[1])
        return (
            flat.movedim(-1, 1).contiguous()
            if like.is_contiguous()
            else flat.contiguous().movedim(-1, 1)
        )


def centred_covariance(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centred matrices, mean ``(groups, c, 1)`` and biased covariance ``(groups, c, c)``.

    Args:
        x: ``(k, c, l)`` as ``Layout.matrices`` gives them, ``k`` a multiple of ``groups``.
        groups: Number of channel groups.

    Note:
        Differentiable, any number of times.
    """
    samples = max(1, len(x) // groups * x.shape[-1])
    mean = per_group(x.sum(dim=-1, keepdim=True), groups) / samples
    centred = x - for_each(mean, x)
    covariance = per_group(centred @ centred.mT, groups) / samples
    # A product need not be symmetric to the last bit.
    return centred, mean, plus_transposed(covariance) / 2


def plus_transposed(a: Tensor) -> Tensor:
    """Twice the symmetric part."""
    return a + a.mT


def affine_map(a: Tensor, x: Tensor, shift: Tensor, *, rows: bool) -> Tensor:
    """``a x + shift`` for every matrix of a group: a grouped 1x1 convolution.

    Written as products, because a convolution may round float32 to TF32 on a GPU and the large
    entries of a whitening matrix would multiply that error.

    Args:
        a: ``(groups, c, c)``.
        x: ``(k, c, l)``.
        shift: ``(groups, c, 1)``.
        rows: The layout's; the result lies in memory as ``x`` does.
    """
    # Not baddbmm, which first fills a new tensor with the shift: 8 % of the layer.
    if rows:
        return (x.mT @ a.mT).add_(shift.mT).mT
    return (for_each(a, x) @ x).add_(for_each(shift, x))


def for_each(per_group: Tensor, x: Tensor) -> Tensor:
    """``(groups, p, q)`` repeated to the ``k`` matrices of ``x``; a view where there is one."""
    groups = len(per_group)
    copies = x.shape[0] // groups  # not len(x), which fixes a free batch in an exported graph
    if groups == 1:
        return per_group.expand(copies, -1, -1)
    return per_group.repeat(copies, 1, 1)


def per_group(each: Tensor, groups: int) -> Tensor:
    """``(k, p, q)`` summed over the matrices of each group."""
    return each.reshape(-1, groups, *each.shape[1:]).sum(dim=0)


class _AllReduce(torch.autograd.Function):
    """Sum over processes; so is its derivative, since every process holds the sum."""

    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(g.contiguous(), ctx.group), None  # type: ignore[no-untyped-call]


def across_processes(
    mean: Tensor, covariance: Tensor, samples: int, group: Any
) -> tuple[Tensor, Tensor, int]:
    """Mean and biased covariance of the samples of all processes, and how many these are.

    The covariance of a union is the weighted mean of the covariances and of the outer products
    of what the means differ by, so no process looks at its activation again.

    Args:
        mean: ``(groups, c, 1)`` of this process; zero where it has no samples.
        covariance: ``(groups, c, c)`` of this process.
        samples: Values of each channel here; may differ between processes.
        group: Process group; None is the default one.
    """
    count = mean.new_tensor([float(samples)])
    sums = summed_over_processes(torch.cat([(mean * samples).flatten(), count]), group)
    total = round(float(sums[-1].detach()))
    if total == 0:
        return mean, covariance, 0
    joint = (sums[:-1] / total).view_as(mean)
    apart = mean - joint
    scatter = summed_over_processes(samples * (covariance + apart @ apart.mT), group)
    return joint, scatter / total, total


def summed_over_processes(x: Tensor, group: Any) -> Tensor:
    """The sum of a tensor over the processes of a group; None is the default one.

    Differentiable, any number of times.
    """
    total: Tensor = _AllReduce.apply(x, group)  # type: ignore[no-untyped-call]
    return total
