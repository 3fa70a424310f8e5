"""Low-rank convolutions: one factorization per group of channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._checks import require_tensor
from orthotrain._doors import checked
from orthotrain.errors import ShapeError
from orthotrain.layers._built import become_
from orthotrain.layers._contraction import ConvGeometry, low_rank_conv
from orthotrain.layers._cost import Bases
from orthotrain.layers._factors import holds_pair
from orthotrain.layers._forms import register_low_rank
from orthotrain.layers._inference import plain_conv
from orthotrain.layers._pair_contraction import pair_conv
from orthotrain.layers._rank_symbols import tell_sizes
from orthotrain.layers._recomputed import keep_less_before
from orthotrain.layers._single_weight import Layer, SingleWeight, copied
from orthotrain.layers._tracing import exporting, leaf
from orthotrain.linalg.matrices import WeightLayout, weight_layout


class _LowRankConv(SingleWeight):
    """What the convolutions share: geometry from the module, one factorization per group."""

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """One block per group, ``out / groups`` by ``in / groups`` times the kernel's size."""
        assert isinstance(module, nn.modules.conv._ConvNd)
        shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        return (weight_layout(module, weight, shape),)

    @classmethod
    @checked
    def from_conv(
        cls: type[Layer],
        conv: nn.modules.conv._ConvNd,
        *,
        rank: int | None = None,
        bases: Bases = "frozen",
    ) -> Layer:
        """A low-rank copy of a convolution: its best approximation of that rank.

        Args:
            conv: The dense layer; not changed and not shared.
            rank: ``k`` of each group; ``None`` keeps the full rank, and with it the function.
            bases: ``"trained"`` trains both factors, ``"frozen"`` the core between them.

        Raises:
            ConfigError: Not the plain torch layer of this class: a subclass, low-rank already.
            RankError: ``rank`` is outside ``[1, min(m, n)]``.
        """
        return copied(cls, conv, rank, bases)

    def _forward(self, x: Tensor) -> Tensor:
        assert isinstance(self, nn.modules.conv._ConvNd)
        if isinstance(x, torch.fx.Proxy):
            return leaf(self, x)
        dims = len(self.kernel_size)
        require_tensor(type(self).__name__, "x", x)
        if x.ndim not in (dims + 1, dims + 2) or x.shape[-dims - 1] != self.in_channels:
            sizes = ", ".join((str(self.in_channels), *"dhw"[-dims:]))
            raise ShapeError(
                f"{type(self).__name__} needs x of shape (batch, {sizes}) or ({sizes}), got "
                f"{tuple(x.shape)}; check the layer before it"
            )
        if (plain := plain_conv(self, x)) is not None:
            return plain
        keep_less_before(x)
        batch = x if x.ndim == dims + 2 else x.unsqueeze(0)
        channels_last = not exporting() and batch.stride(1) == 1 and not batch.is_contiguous()
        padded, padding = _padded(self, batch)
        geometry = ConvGeometry(self.stride, padding, self.dilation, channels_last=channels_last)
        lead = () if self.groups > 1 else (1,)
        if holds_pair(self):
            pair, m = self.pair.reshape(*lead, *self.pair.shape), self.out_channels // self.groups
            y = pair_conv(padded, pair, self.bias, geometry, m=m, kernel=self.kernel_size)
        else:
            rank, n = (
                self.u.shape[-1],
                math.prod(self.kernel_size) * self.in_channels // self.groups,
            )
            tell_sizes(
                (rank, self.core.shape[-1]), (rank, self.core.shape[-2]), (rank, self.vh.shape[-2]),
                (self.u.shape[-2], self.out_channels // self.groups), (self.vh.shape[-1], n),
            )  # fmt: skip
            u, core = (t.reshape(*lead, *t.shape) for t in (self.u, self.core))
            filters = self.vh.reshape(-1, self.in_channels // self.groups, *self.kernel_size)
            y = low_rank_conv(padded, u, core, filters, self.bias, geometry)
        return y if batch is x else y.squeeze(0)

    def _fresh(self) -> nn.Module:
        assert isinstance(self, nn.modules.conv._ConvNd)
        like = self.pair if holds_pair(self) else self.core
        return self._dense_class(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding,
            self.dilation, self.groups, self.bias is not None, self.padding_mode,
            like.device, like.dtype,
        )  # fmt: skip


@checked
@register_low_rank("torch.nn.modules.conv.Conv1d")
class LowRankConv1d(_LowRankConv, nn.Conv1d):
    """1-D convolution with the weight ``u @ core @ vh`` of each group; see ``LowRankConv2d``."""

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.Conv1d(*args, **kwargs), rank)

    def forward(self, x: Float[Tensor, "*batch c w"]) -> Float[Tensor, "*batch m out_w"]:
        """``(batch, in, size)`` to ``(batch, out, size')``; the batch may be missing."""
        return self._forward(x)


@checked
@register_low_rank("torch.nn.modules.conv.Conv2d")
class LowRankConv2d(_LowRankConv, nn.Conv2d):
    """2-D convolution with the weight ``u @ core @ vh`` of each group.

    Keeps for backward the ``k`` channels between ``vh`` and ``u``, not its input; with trained
    bases both. A norm between two of these keeps nothing of what enters it, where that is cheap to
    compute again.

    Args:
        args: As ``nn.Conv2d`` takes them.
        rank: ``k`` of each group, from 1 to the smaller side of ``out / groups`` by
            ``in / groups * kernel``.
        kwargs: As ``nn.Conv2d`` takes them.

    Attributes:
        u: ``(out, k)`` buffer, ``(groups, out / groups, k)`` where there are groups.
        core: ``(k, k)`` Parameter, ``(groups, k, k)`` where there are groups.
        vh: ``(k, in * kernel)`` buffer, ``(groups, k, in / groups * kernel)`` with groups.
        weight: In the dense layer's shape, materialized when read.

    Raises:
        ConfigError: Arguments that ``nn.Conv2d`` refuses.
        RankError: ``rank`` is out of range.

    Source:
        Coquelin et al., arXiv:2401.08505; one factorization per group is ours.

    Example:
        >>> layer = LowRankConv2d(4, 6, 3, padding="same", rank=2)
        >>> layer(torch.zeros(5, 4, 8, 8)).shape, layer.core.shape
        (torch.Size([5, 6, 8, 8]), torch.Size([2, 2]))
    """

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.Conv2d(*args, **kwargs), rank)

    def forward(self, x: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch m out_h out_w"]:
        """``(batch, in, h, w)`` to ``(batch, out, h', w')``; the batch may be missing."""
        return self._forward(x)


@checked
@register_low_rank("torch.nn.modules.conv.Conv3d")
class LowRankConv3d(_LowRankConv, nn.Conv3d):
    """3-D convolution with the weight ``u @ core @ vh`` of each group; see ``LowRankConv2d``."""

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.Conv3d(*args, **kwargs), rank)

    def forward(
        self, x: Float[Tensor, "*batch c d h w"]
    ) -> Float[Tensor, "*batch m out_d out_h out_w"]:
        """``(batch, in, d, h, w)`` to ``(batch, out, d', h', w')``; the batch may be missing."""
        return self._forward(x)


def _padded(conv: nn.modules.conv._ConvNd, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input padded by what is not symmetric zeros, and the zero padding left to do."""
    both = conv._reversed_padding_repeated_twice
    before, after = tuple(both[-2::-2]), tuple(both[-1::-2])
    if conv.padding_mode != "zeros":
        return F.pad(x, both, mode=conv.padding_mode), (0,) * len(before)
    if before != after:  # padding="same" with an even kernel
        return F.pad(x, both), (0,) * len(before)
    return x, before
