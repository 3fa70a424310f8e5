"""Dense operators of convolutions, entry by entry in float64, and what is made of them."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_operator(kernel: Tensor, height: int, width: int) -> Tensor:
    """The matrix of ``y[o, p] = sum_{i, q} kernel[o, i, q] x[i, p + q]`` with zero padding.

    Rows and columns are (channel, row, column); ``q`` counts from the middle of the kernel.
    """
    out, channels, kh, kw = kernel.shape
    matrix = torch.zeros(out, height, width, channels, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            for i in range(kh):
                for j in range(kw):
                    row, column = y + i - kh // 2, x + j - kw // 2
                    if 0 <= row < height and 0 <= column < width:
                        matrix[:, y, x, :, row, column] = kernel[:, :, i, j].double()
    return matrix.reshape(out * height * width, channels * height * width)


def four_norms(kernel: Tensor) -> list[float]:
    """Singla and Feizi (2021): the four matrices, filled entry by entry, and their norms."""
    out, channels, kh, kw = kernel.shape
    matrices = [
        torch.zeros(out, channels * kh * kw, dtype=torch.float64),
        torch.zeros(out * kh * kw, channels, dtype=torch.float64),
        torch.zeros(out * kh, channels * kw, dtype=torch.float64),
        torch.zeros(out * kw, channels * kh, dtype=torch.float64),
    ]
    for o in range(out):
        for c in range(channels):
            for i in range(kh):
                for j in range(kw):
                    value = kernel[o, c, i, j].double()
                    matrices[0][o, (c * kh + i) * kw + j] = value
                    matrices[1][(o * kh + i) * kw + j, c] = value
                    matrices[2][o * kh + i, c * kw + j] = value
                    matrices[3][o * kw + j, c * kh + i] = value
    return [float(torch.linalg.svdvals(matrix)[0]) for matrix in matrices]


def exponential(a: Tensor) -> Tensor:
    """The power series, to where it ends in float64 for norms below four."""
    total = power = torch.eye(len(a), dtype=torch.float64)
    for i in range(1, 40):
        power = power @ a / i
        total = total + power
    return total


def orthogonal_convolution(
    weight: Tensor, x: Tensor, *, out_channels: int, stride: int, max_norm: float
) -> Tensor:
    """``exp(A) x`` by the power series of the dense matrix of the scaled skew convolution."""
    weight = weight.double()
    channels, _, kh, kw = weight.shape
    skew = torch.zeros_like(weight)
    for i in range(kh):
        for j in range(kw):
            skew[:, :, i, j] = (weight[:, :, i, j] - weight[:, :, kh - 1 - i, kw - 1 - j].T) / 2
    bound = (kh * kw) ** 0.5 * min(four_norms(skew))
    skew = skew * max_norm / bound if bound > 0 else skew
    images = []
    for image in x.double():
        blocks = [
            image[c, i::stride, j::stride]
            for c in range(len(image))
            for i in range(stride)
            for j in range(stride)
        ]
        height, width = blocks[0].shape
        full = torch.zeros(channels, height, width, dtype=torch.float64)
        for c, block in enumerate(blocks):
            full[c] = block
        operator = exponential(dense_operator(skew, height, width))
        images.append((operator @ full.flatten()).view(channels, height, width)[:out_channels])
    return torch.stack(images)
