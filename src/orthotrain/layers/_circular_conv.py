"""Convolutions of pictures whose opposite borders meet, and their transposes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from orthotrain.errors import ShapeError


def circular_conv(
    x: Float[Tensor, "n c h w"], kernel: Tensor, bias: Tensor | None, *, stride: int, groups: int
) -> Float[Tensor, "n out h_out w_out"]:
    """``(n, c, h, w)`` to ``(n, out, h / stride, w / stride)``; kernels not below the stride."""
    for axis in (-1, -2):
        before, after = _reach(kernel.shape[axis], stride)
        x = _wrapped(x, axis, before, after)
    return F.conv2d(x, kernel, bias, stride, groups=groups)


def circular_conv_transpose(
    x: Float[Tensor, "n c h w"], kernel: Tensor, bias: Tensor | None, *, stride: int, groups: int
) -> Float[Tensor, "n out h_out w_out"]:
    """``(n, c, h, w)`` to ``(n, out, h * stride, w * stride)``: the transpose of the convolution.

    Args:
        x: What the convolution returns for a picture.
        kernel: That of the convolution, ``(c, out / groups, kh, kw)``.
        bias: Added to each of the ``out`` channels, or None.
        stride: Of the convolution.
        groups: Of the convolution.
    """
    size = x.shape[-2] * stride, x.shape[-1] * stride
    cut = []
    for axis in (-2, -1):
        before, after = _reach(kernel.shape[axis], stride)
        around = -(-after // stride)
        x = _wrapped(x, axis, around, around)
        cut.append(around * stride + before)
    y = F.conv_transpose2d(x, kernel, bias, stride, tuple(cut), groups=groups)
    return y[..., : size[0], : size[1]]


def _reach(taps: int, stride: int) -> tuple[int, int]:
    """Pixels that a kernel reads before and after the ``stride`` pixels of its own output."""
    return (taps - stride) // 2, (taps - stride + 1) // 2


def _wrapped(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """``x`` with its last pixels before it and its first ones after it.

    By ``cat``: the backward of torch's circular padding takes four times as long.
    """
    if after == 0:
        return x
    size = x.shape[axis]
    if after > size:
        raise ShapeError(
            f"OrthogonalConv2d needs at least {after} pixels on each side for its kernel and "
            f"stride, got an input of shape {tuple(x.shape)}; take a smaller kernel or a larger "
            f"picture"
        )
    parts = (x.narrow(axis, size - before, before), x, x.narrow(axis, 0, after))
    return torch.cat(parts, axis)
