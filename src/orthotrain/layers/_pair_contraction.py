"""Apply a low-rank weight ``left @ right`` whose factors are both trained.

Both factors lie side by side in one tensor, the pair: ``left^T`` in front, ``right`` behind. The
two gradients are written side by side, too, so the optimizer sees one tensor with one gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from orthotrain.layers._contraction import ConvGeometry, require_width, under_autocast
from orthotrain.layers._cost import cheapest_pair_form


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
    rows = x.shape[:-1].numel()
    if cheapest_pair_form(rows, m, n, k, training=torch.is_grad_enabled()) == "materialized":
        enter, leave = _sides(pair, m, inputs_first=inputs_first)
        return F.linear(x, leave.mT @ enter, bias)
    flat = x.reshape(rows, inputs)
    y: Tensor = _PairLinear.apply(flat, pair, bias, m, inputs_first)[0]  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], outputs)


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
        Differentiable any number of times in ``x``, ``pair`` and ``bias``. These are two plain
        convolutions: torch cannot write the gradient of filters into a part of a tensor, so the
        two gradients are joined by the one copy that ``split`` makes in its backward pass.
    """
    groups, k, n = *pair.shape[:2], pair.shape[2] - m
    x, pair, bias = under_autocast(x, pair, bias)
    left, right = torch.split(pair, [m, n], -1)
    positions = x.shape[0] * geometry.out_size(x.shape[2:], kernel).numel()
    if cheapest_pair_form(positions, m, n, k, training=torch.is_grad_enabled()) == "materialized":
        weight = (left.mT @ right).reshape(groups * m, -1, *kernel)
        return geometry.convolve(x, weight, bias, groups)
    hidden = geometry.convolve(x, right.reshape(groups * k, -1, *kernel), None, groups)
    return geometry.pointwise(hidden, left.mT, bias)


class _PairLinear(torch.autograd.Function):
    """``(x, pair, bias, m, inputs_first) -> (y, hidden)``, both factors in one gradient.

    ``hidden`` is returned as a second output, so it is part of the graph and the backward pass
    is itself differentiable.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, pair: Tensor, bias: Tensor | None, m: int, inputs_first: bool
    ) -> tuple[Tensor, Tensor]:
        enter, leave = _sides(pair, m, inputs_first=inputs_first)
        hidden = x @ enter.mT
        return F.linear(hidden, leave.mT, bias), hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, pair, _, ctx.m, ctx.inputs_first = inputs
        kept = (x, output[1]) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(pair, *kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_y, grad_hidden = grads
        pair, *kept = ctx.saved_tensors
        enter, leave = _sides(pair, ctx.m, inputs_first=ctx.inputs_first)
        grad_x = grad_pair = grad_bias = None
        if grad_y is not None:
            through_leave = grad_y @ leave.mT
            grad_hidden = through_leave if grad_hidden is None else grad_hidden + through_leave
            if ctx.needs_input_grad[2]:
                grad_bias = grad_y.sum(0)
        if grad_hidden is None:
            return (None,) * 5
        if ctx.needs_input_grad[0]:
            grad_x = grad_hidden @ enter
        if ctx.needs_input_grad[1]:
            x, hidden = kept
            if grad_y is None:
                grad_y = x.new_zeros(x.shape[0], leave.shape[1])
            products = (hidden, grad_y), (grad_hidden, x)
            grad_pair = _side_by_side(*(products[::-1] if ctx.inputs_first else products))
        return grad_x, grad_pair, grad_bias, None, None


def _sides(pair: Tensor, m: int, *, inputs_first: bool) -> tuple[Tensor, Tensor]:
    """The factor next to the input and the one next to the output, each ``(k, its side)``."""
    left, right = torch.split(pair, [m, pair.shape[-1] - m], -1)
    return (left, right) if inputs_first else (right, left)


def _side_by_side(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """``a^T b`` of two pairs of matrices, next to each other in one tensor.

    Written in place, unless a graph over this very product is needed, or transforms and the
    compiler do not take it.
    """
    (a, b), (c, d) = first, second
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if traced or any(map(torch._C._functorch.is_functorch_wrapped_tensor, (a, b, c, d))):
        return torch.cat((a.mT @ b, c.mT @ d), 1)
    both = a.new_empty(a.shape[1], b.shape[1] + d.shape[1])
    torch.mm(a.mT, b, out=both[:, : b.shape[1]])
    torch.mm(c.mT, d, out=both[:, b.shape[1] :])
    return both
