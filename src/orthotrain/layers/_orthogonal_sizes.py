"""What sizes and settings an orthogonal convolution may have, and which method fits them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from orthotrain._checks import require_number
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers._block_kernel import BlockSizes
from orthotrain.linalg import exponential_remainder

Method = Literal["skew", "kernel"]
Padding = Literal["auto", "zeros", "circular"]

# Powers of the operator, as published.
TRAIN_TERMS, EVAL_TERMS = 5, 10
# A power iteration ends below the norm. After 50 rounds from a random start it is 2.3 % short at
# most (measured, 60 kernels of 7 to 512 channels), and 6 % in theory, on average at 512 channels.
NORM_SLACK = 1.1
DEFAULT_NORM = 0.7


class ConvSizes(NamedTuple):
    """What both methods are told of the layer: sizes as ``nn.Conv2d`` names them."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: int
    groups: int
    transposed: bool
    padding_mode: Padding
    max_norm: float | None

    @property
    def skew_channels(self) -> int:
        """Channels of the skew kernel."""
        return max(self.out_channels, self.in_channels * self.stride**2)

    @property
    def block(self) -> BlockSizes:
        """Of the product of small kernels: that of the convolution whose transpose this may be."""
        out, channels = self.out_channels // self.groups, self.in_channels // self.groups
        rows, columns = (channels, out) if self.transposed else (out, channels)
        return BlockSizes(rows, columns, *self.kernel_size, self.stride, self.groups)

    def fitting(self) -> Method:
        """``"kernel"`` where it is possible, and nothing is asked for that only the other has."""
        if self.max_norm is not None or self.padding_mode == "zeros":
            return "skew"
        return "kernel" if self._no_kernel() is None else "skew"

    def require_possible(self) -> None:
        """Raise ConfigError where no convolution has these sizes."""
        numbers = (self.in_channels, self.out_channels, *self.kernel_size, self.stride, self.groups)
        if min(numbers) < 1:
            raise ConfigError(
                f"OrthogonalConv2d needs sizes of at least 1, got in_channels {self.in_channels}, "
                f"out_channels {self.out_channels}, kernel_size {self.kernel_size}, stride "
                f"{self.stride}, groups {self.groups}"
            )
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ConfigError(
                f"OrthogonalConv2d needs channels that its groups divide, got in_channels "
                f"{self.in_channels}, out_channels {self.out_channels}, groups {self.groups}"
            )

    def require(self, method: Method) -> None:
        """Raise ConfigError where ``method`` does not have these sizes and settings."""
        reason = self._no_skew() if method == "skew" else self._no_kernel()
        if reason is not None:
            raise ConfigError(f"OrthogonalConv2d with method {method!r} {reason}")
        if self.max_norm is not None:
            _require_norm(self.max_norm)

    def _no_skew(self) -> str | None:
        if any(size % 2 == 0 for size in self.kernel_size):
            odd = tuple(size | 1 for size in self.kernel_size)
            return (
                f"needs odd kernel sizes, got {self.kernel_size}: an even kernel has no middle, so "
                f"its convolution cannot be skew; take {odd}, or method 'kernel'"
            )
        if self.groups > 1 or self.transposed:
            return (
                f"has neither groups nor a transpose, got groups {self.groups}, transposed "
                f"{self.transposed}; take method 'kernel'"
            )
        if self.padding_mode == "circular":
            return "pads with zeros, got padding_mode 'circular'; take method 'kernel'"
        return None

    def _no_kernel(self) -> str | None:
        if self.max_norm is not None:
            return f"has no max_norm, got {self.max_norm}; leave it out, or take method 'skew'"
        if self.padding_mode == "zeros":
            return (
                "needs circular padding, got padding_mode 'zeros': zeros at the border shrink what "
                "is there, and its singular values; take 'circular', or method 'skew'"
            )
        if min(self.kernel_size) < self.stride:
            return (
                f"needs kernel sizes of at least its stride, got {self.kernel_size} with stride "
                f"{self.stride}: pixels between the kernels would be dropped; take a larger "
                f"kernel, or method 'skew', whose kernel counts blocks of pixels"
            )
        if self.block.factors > 0 and self.block.inner_channels < 2:
            return (
                f"needs at least two channels in each group for a kernel larger than its stride, "
                f"got in_channels {self.in_channels}, out_channels {self.out_channels}, groups "
                f"{self.groups}, kernel_size {self.kernel_size}: only shifts of one channel are "
                f"orthogonal; take fewer groups, a kernel of size {self.stride}, or method 'skew'"
            )
        return None


def require_picture(x: Tensor, sizes: ConvSizes) -> None:
    """Raise ShapeError unless ``x`` is a picture, or a batch of them, that the layer takes."""
    channels, stride = sizes.in_channels, sizes.stride
    if x.ndim not in (3, 4) or x.shape[-3] != channels:
        raise ShapeError(
            f"OrthogonalConv2d needs x of shape (batch, {channels}, h, w) or ({channels}, h, w), "
            f"got {tuple(x.shape)}; check the layer before it"
        )
    if not sizes.transposed and (x.shape[-2] % stride or x.shape[-1] % stride):
        raise ShapeError(
            f"OrthogonalConv2d needs a height and width that its stride {stride} divides, got "
            f"{tuple(x.shape)}; pad or crop the input: a layer that drops pixels is not orthogonal"
        )


def _require_norm(max_norm: float) -> None:
    require_number("OrthogonalConv2d", "max_norm", max_norm, above=0)
    off = exponential_remainder(NORM_SLACK * max_norm, TRAIN_TERMS)
    if off >= 1:
        raise ConfigError(
            f"OrthogonalConv2d needs max_norm below 2.7, got {max_norm}: the {TRAIN_TERMS} "
            f"terms of its series may then be off by {off:.2g}, and singular values should be "
            f"1; the default is 0.7, the published scale of a 3x3 kernel 2.1"
        )
