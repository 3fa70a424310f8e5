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


def circular_operator(kernel: Tensor, height: int, width: int, *, stride: int = 1) -> Tensor:
    """The matrix of ``y[o, p] = sum_{i, q} kernel[o, i, q] x[i, stride p + q - reach]``, modulo.

    ``reach`` is half of what a kernel is larger than the stride, rounded down.
    """
    out, channels, kh, kw = kernel.shape
    rows, columns = height // stride, width // stride
    matrix = torch.zeros(out, rows, columns, channels, height, width, dtype=torch.float64)
    for y in range(rows):
        for x in range(columns):
            for i in range(kh):
                for j in range(kw):
                    row = (y * stride + i - (kh - stride) // 2) % height
                    column = (x * stride + j - (kw - stride) // 2) % width
                    matrix[:, y, x, :, row, column] += kernel[:, :, i, j].double()
    return matrix.reshape(out * rows * columns, channels * height * width)


def gram_schmidt(a: Tensor) -> Tensor:
    """Orthonormal columns, one after the other; orthonormal rows of a matrix that is wide."""
    if a.shape[0] < a.shape[1]:
        return gram_schmidt(a.T).T
    columns: list[Tensor] = []
    for column in a.double().T:
        for done in columns * 2:
            column = column - done * (done @ column)
        columns.append(column / column.norm())
    return torch.stack(columns, dim=1)


def block_product(a: Tensor, b: Tensor) -> Tensor:
    """The kernel of the convolution with ``b``, then ``a``; Li et al. (2019), section 4."""
    height, width = (a.shape[d] + b.shape[d] - 1 for d in (2, 3))
    product = torch.zeros(a.shape[0], b.shape[1], height, width, dtype=torch.float64)
    for i in range(a.shape[2]):
        for j in range(a.shape[3]):
            for k in range(b.shape[2]):
                for m in range(b.shape[3]):
                    product[:, :, i + k, j + m] += a[:, :, i, j] @ b[:, :, k, m]
    return product


def block_kernel(
    weight: Tensor, subspaces: list[Tensor], entry: Tensor | None, kernel_size: tuple[int, int]
) -> Tensor:
    """One group of the kernel of Li et al. (2019); with a stride, of Boissin et al. (2025).

    Args:
        weight: ``(out, in, s, s)``.
        subspaces: ``(c, r)`` each, along height and width in turns.
        entry: ``(c, in)`` or None.
        kernel_size: Height and width.
    """
    out, channels, stride, _ = weight.shape
    kernel = gram_schmidt(weight.flatten(1)).reshape(weight.shape)
    steps = [size - stride for size in kernel_size]
    turns = [(i, axis) for i in range(max(steps)) for axis in (0, 1) if i < steps[axis]]
    for (i, axis), columns in zip(turns, subspaces, strict=True):
        q = gram_schmidt(columns)
        pair = [q @ q.T, torch.eye(len(q), dtype=torch.float64) - q @ q.T]
        taps = torch.stack(pair if i % 2 == 0 else pair[::-1], dim=2).unsqueeze(3 - axis)
        ends_with_matrix = stride == 1 and out > channels
        kernel = block_product(taps, kernel) if ends_with_matrix else block_product(kernel, taps)
    if entry is None:
        return kernel
    return block_product(kernel, gram_schmidt(entry)[:, :, None, None])
