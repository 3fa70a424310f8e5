"""Apply a low-rank weight ``left @ right`` whose factors are both trained.

Both factors lie side by side in one tensor, the pair: ``left^T`` in front, ``right`` behind. Each
is a view of it, and the layer is two plain ones on these views. One node of the graph, that of
``split``, writes both gradients side by side into one tensor.

A Function of our own that lets both products write there directly saves that copy, but its calls
from Python cost more than the copy in layers of width 128 and 256. How long this form takes beside
two plain layers is in ``benchmarks/trained_factors.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from orthotrain.layers._contraction import ConvGeometry, require_width, under_autocast
from orthotrain.layers._cost import cheapest_pair_form
from orthotrain.layers._recomputed import can_be_recomputed, worth_it
from orthotrain.layers._tracing import exporting


def pair_linear(
    x: Float[Tensor, "*rows inputs"],
    pair: Float[Tensor, "k both"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    m: int,
    inputs_first: bool = False,
) -> Float[Tensor, "*rows outputs"]:
    """``x @ (left @ right)^T + bias`` by the cheapest contraction.

    Args:
        x: ``(*rows, inputs)``.
        pair: ``(k, m + n)``: ``left^T`` of ``(k, m)`` and ``right`` of ``(k, n)``.
        bias: ``(outputs,)`` or None.
        m: Rows of the weight.
        inputs_first: The rows of the weight are its inputs: ``x @ (left @ right) + bias``.

    Returns:
        ``(*rows, outputs)`` in the dtype of ``x``, or autocast's where that is on.

    Raises:
        ShapeError: The last dimension of ``x`` does not fit the weight.

    Note:
        Differentiable any number of times in ``x``, ``pair`` and ``bias``. Backward keeps ``x``
        and the ``k``-wide product, as two plain layers do.
    """
    k, n = pair.shape[0], pair.shape[1] - m
    inputs, outputs = (m, n) if inputs_first else (n, m)
    require_width(x, inputs, outputs)
    x, pair, bias = under_autocast(x, pair, bias)
    left, right = torch.split(pair, [m, n], -1)
    enter, leave = (left, right) if inputs_first else (right, left)
    if exporting():
        return F.linear(F.linear(x, enter), leave.mT, bias)
    rows = x.shape[:-1].numel()
    if cheapest_pair_form(rows, m, n, k, training=torch.is_grad_enabled()) == "materialized":
        return F.linear(x, leave.mT @ enter, bias)
    return F.linear(F.linear(x, enter), leave.mT, bias)


def pair_conv(
    x: Float[Tensor, "batch channels *size"],
    pair: Float[Tensor, "groups k both"],
    bias: Float[Tensor, " out"] | None,
    geometry: ConvGeometry,
    *,
    m: int,
    kernel: Sequence[int],
) -> Float[Tensor, "batch out *out_size"]:
    """Convolution with the weight ``left @ right`` of each group, by the cheapest contraction.

    Args:
        x: ``(batch, channels, *size)``, padded already where the padding is not with zeros.
        pair: ``(groups, k, m + n)``: of each group ``left^T`` and ``right``.
        bias: ``(groups * m,)`` or None.
        geometry: Stride, zero padding and dilation of each spatial dimension.
        m: Output channels of a group.
        kernel: Size of the filters in each spatial dimension.

    Returns:
        ``(batch, out, *out_size)`` in the memory format that ``torch`` gives the dense one.

    Note:
        Differentiable any number of times in ``x``, ``pair`` and ``bias``.
    """
    # Not from the pair, whose sizes are symbols of a compiled graph.
    groups, k, channels = *pair.shape[:2], x.shape[1] // pair.shape[0]
    n = channels * math.prod(kernel)
    x, pair, bias = under_autocast(x, pair, bias)
    left, right = torch.split(pair, [m, n], -1)
    if exporting():
        hidden = geometry.convolve(x, right.reshape(groups * k, channels, *kernel), None, groups)
        return geometry.pointwise(hidden, left.mT, bias)
    positions = x.shape[0] * geometry.out_size(x.shape[2:], kernel).numel()
    if cheapest_pair_form(positions, m, n, k, training=torch.is_grad_enabled()) == "materialized":
        weight = (left.mT @ right).reshape(groups * m, channels, *kernel)
        return geometry.convolve(x, weight, bias, groups)
    hidden = geometry.convolve(x, right.reshape(groups * k, channels, *kernel), None, groups)
    y = geometry.pointwise(hidden, left.mT, bias)
    return can_be_recomputed(y, partial(_pair_parts, bias, geometry)) if worth_it(m, n, k) else y


def _pair_parts(bias: Tensor | None, geometry: ConvGeometry, node: Any) -> tuple[Any, Any]:
    """What gives the output of ``pair_conv`` again, from what the node of its 1x1 step keeps."""
    while not hasattr(node, "_saved_weight"):  # a change of the memory format came after it
        node = node.next_functions[0][0]
    hidden, weight = node._saved_input.detach(), node._saved_weight.detach()
    matrices = weight.reshape(hidden.shape[1] // weight.shape[1], -1, weight.shape[1])
    return geometry.pointwise, (hidden, matrices, None if bias is None else bias.detach())
