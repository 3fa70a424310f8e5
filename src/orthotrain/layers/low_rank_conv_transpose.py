"""Low-rank transposed convolutions: into ``k`` channels, and from them by 1x1 into all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from orthotrain._doors import checked
from orthotrain.layers._built import become_
from orthotrain.layers._factors import holds_pair
from orthotrain.layers._forms import register_low_rank
from orthotrain.layers._single_weight import SingleWeight
from orthotrain.layers._tracing import leaf
from orthotrain.linalg.matrices import WeightLayout, weight_layout

_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


class _LowRankConvTranspose(SingleWeight, _ConvTransposeNd):
    """One factorization per group: outputs by inputs times taps, as of a convolution."""

    on_request: ClassVar[str] = "transposed"

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """One block per group, ``out / groups`` by ``in / groups`` times the kernel's size."""
        assert isinstance(module, _ConvTransposeNd)
        shape = (module.in_channels, module.out_channels // module.groups, *module.kernel_size)
        return (weight_layout(module, weight, shape),)

    def _forward(self, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return leaf(self, x) if output_size is None else leaf(self, x, output_size)
        dims, padding = len(self.kernel_size), cast("tuple[int, ...]", self.padding)
        added = self._output_padding(
            x, output_size, self.stride, padding, self.kernel_size, dims, self.dilation  # type: ignore[arg-type]
        )  # fmt: skip
        left, right = self.two_factors()
        filters = transposed_filters(right, self)
        hidden = _TRANSPOSED[dims](
            x, filters, None, self.stride, padding, added, self.groups, self.dilation
        )  # fmt: skip
        spread = left.reshape(self.out_channels, -1, *(1,) * dims)
        return _CONV[dims](hidden, spread, self.bias, groups=self.groups)

    def _fresh(self) -> nn.Module:
        like = self.pair if holds_pair(self) else self.core
        return self._dense_class(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding,
            self.output_padding, self.groups, self.bias is not None, self.dilation,
            device=like.device, dtype=like.dtype,
        )  # fmt: skip


def transposed_filters(right: Tensor, module: _ConvTransposeNd) -> Tensor:
    """``(in, k, *taps)`` of a right factor: the weight of a transposed convolution into ``k``."""
    inputs = module.in_channels // module.groups
    blocks = right.reshape(module.groups, -1, inputs, *module.kernel_size)
    return blocks.transpose(1, 2).flatten(0, 1)


@checked
@register_low_rank("torch.nn.modules.conv.ConvTranspose1d")
class LowRankConvTranspose1d(_LowRankConvTranspose, nn.ConvTranspose1d):
    """1-D transposed convolution in factors; see ``LowRankConvTranspose2d``."""

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.ConvTranspose1d(*args, **kwargs), rank)

    def forward(
        self, x: Float[Tensor, "*batch c w"], output_size: Sequence[int] | None = None
    ) -> Float[Tensor, "*batch m out_w"]:
        """``(batch, in, size)`` to ``(batch, out, size')``; the batch may be missing."""
        return self._forward(x, output_size)


@checked
@register_low_rank("torch.nn.modules.conv.ConvTranspose2d")
class LowRankConvTranspose2d(_LowRankConvTranspose, nn.ConvTranspose2d):
    """2-D transposed convolution with the weight ``u @ core @ vh`` of each group.

    Cut on request, ``compress(also=["transposed"])``.

    Args:
        args: As ``nn.ConvTranspose2d`` takes them.
        rank: ``k`` of each group, from 1 to the smaller side of ``out / groups`` by
            ``in / groups * kernel``.
        kwargs: As ``nn.ConvTranspose2d`` takes them.

    Raises:
        RankError: ``rank`` is out of range.

    Example:
        >>> layer = LowRankConvTranspose2d(4, 6, 3, stride=2, rank=2)
        >>> layer(torch.zeros(5, 4, 8, 8)).shape, layer.core.shape
        (torch.Size([5, 6, 17, 17]), torch.Size([2, 2]))
    """

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.ConvTranspose2d(*args, **kwargs), rank)

    def forward(
        self, x: Float[Tensor, "*batch c h w"], output_size: Sequence[int] | None = None
    ) -> Float[Tensor, "*batch m out_h out_w"]:
        """``(batch, in, h, w)`` to ``(batch, out, h', w')``; the batch may be missing."""
        return self._forward(x, output_size)


@checked
@register_low_rank("torch.nn.modules.conv.ConvTranspose3d")
class LowRankConvTranspose3d(_LowRankConvTranspose, nn.ConvTranspose3d):
    """3-D transposed convolution in factors; see ``LowRankConvTranspose2d``."""

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.ConvTranspose3d(*args, **kwargs), rank)

    def forward(
        self, x: Float[Tensor, "*batch c d h w"], output_size: Sequence[int] | None = None
    ) -> Float[Tensor, "*batch m out_d out_h out_w"]:
        """``(batch, in, d, h, w)`` to ``(batch, out, d', h', w')``; the batch may be missing."""
        return self._forward(x, output_size)
