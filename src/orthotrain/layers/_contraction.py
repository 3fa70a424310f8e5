"""Apply a low-rank weight ``u @ core @ vh`` without building it, keeping ``k`` numbers per row.

Both operations are one ``autograd.Function``. What backward needs is the ``k``-wide product
with ``vh``, not the input: ``F.conv2d`` keeps its input even where the weight is frozen, so a
convolution of three plain operations would keep more than the dense one. That product is
returned as a second output, so it is part of the graph and the backward pass is itself
differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from orthotrain._checks import require_tensor
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers._cost import cheapest_form
from orthotrain.layers._rank_symbols import tell_sizes
from orthotrain.layers._recomputed import can_be_recomputed, worth_it
from orthotrain.layers._tracing import exporting, holds_for_sure, transformed

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def low_rank_linear(
    x: Float[Tensor, "*rows n"],
    u: Float[Tensor, "m k"],
    core: Float[Tensor, "k k"],
    vh: Float[Tensor, "k n"],
    bias: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, "*rows m"]:
    """``x @ (u @ core @ vh)^T + bias`` by the cheapest contraction.

    Args:
        x: ``(*rows, n)``.
        u: ``(m, k)``, treated as a constant.
        core: ``(k, k)``, differentiated.
        vh: ``(k, n)``, treated as a constant.
        bias: ``(m,)`` or None.

    Returns:
        ``(*rows, m)`` in the dtype of ``x``, or autocast's where that is on.

    Raises:
        ConfigError: ``x`` is on the meta device, and the layer is not.
        ShapeError: The last dimension of ``x`` is not ``n``.

    Note:
        Differentiable any number of times in ``x``, ``core`` and ``bias``.
    """
    (m, k), n = u.shape, vh.shape[1]
    tell_sizes((k, core.shape[0]), (k, core.shape[1]), (k, vh.shape[0]))
    require_width(x, n, m)
    if x.is_meta and not u.is_meta:
        raise ConfigError(
            "a low-rank linear layer needs input with values, got some on the meta device; make "
            f"it on {u.device}"
        )
    x, u, core, vh, bias = under_autocast(x, u, core, vh, bias)
    if exporting():
        return F.linear(F.linear(x, vh), u @ core, bias)
    rows = x.shape[:-1].numel()
    if cheapest_form(rows, m, n, k, training=torch.is_grad_enabled()) == "materialized":
        return F.linear(x, u @ core @ vh, bias)
    flat = x.reshape(rows, n)
    if not torch.is_grad_enabled():
        return _LowRankLinear.forward(flat, u, core, vh, bias)[0].reshape(*x.shape[:-1], m)
    y: Tensor = _called(_LowRankLinear, flat, u, core, vh, bias)[0]
    return y.reshape(*x.shape[:-1], m)


def low_rank_conv(
    x: Float[Tensor, "batch channels *size"],
    u: Float[Tensor, "groups m k"],
    core: Float[Tensor, "groups k k"],
    vh: Float[Tensor, "filters channels_per_group *kernel"],
    bias: Float[Tensor, " out"] | None,
    geometry: ConvGeometry,
) -> Float[Tensor, "batch out *out_size"]:
    """Convolution with the weight ``u @ core @ vh`` of each group, by the cheapest contraction.

    Args:
        x: ``(batch, channels, *size)`` with one to three spatial dimensions, padded already
            where the padding is not with zeros.
        u: ``(groups, out / groups, k)``, treated as a constant.
        core: ``(groups, k, k)``, differentiated.
        vh: ``(groups * k, channels / groups, *kernel)``: the right factor as ``k`` filters per
            group, treated as a constant.
        bias: ``(out,)`` or None.
        geometry: Stride, zero padding and dilation of each spatial dimension.

    Returns:
        ``(batch, out, *out_size)`` in the memory format that ``torch`` gives the dense one.

    Note:
        Differentiable any number of times in ``x``, ``core`` and ``bias``.
    """
    groups, m, k = u.shape
    n = vh[0].numel()
    x, u, core, vh, bias = under_autocast(x, u, core, vh, bias)
    if exporting():
        hidden = geometry.convolve(x, vh, None, groups)
        return geometry.pointwise(hidden, u @ core, bias)
    positions = x.shape[0] * geometry.out_size(x.shape[2:], vh.shape[2:]).numel()
    if cheapest_form(positions, m, n, k, training=torch.is_grad_enabled()) == "materialized":
        weight = (u @ core @ vh.reshape(groups, k, n)).reshape(groups * m, *vh.shape[1:])
        return geometry.convolve(x, weight, bias, groups)
    if not torch.is_grad_enabled():
        return _LowRankConv.forward(x, u, core, vh, bias, geometry)[0]
    y: Tensor = _called(_LowRankConv, x, u, core, vh, bias, geometry)[0]
    return can_be_recomputed(y, partial(_frozen_parts, bias, geometry)) if worth_it(m, n, k) else y


class ConvGeometry:
    """Stride, zero padding and dilation, one integer per spatial dimension, and the memory format.

    Torch takes the format of a result from the input or the weight. Padding and custom backward
    passes lose the input's, so with ``channels_last`` every weight is given in that format.
    """

    def __init__(
        self,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        *,
        channels_last: bool = False,
    ) -> None:
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self.channels_last = channels_last

    def out_size(self, size: Sequence[int], kernel: Sequence[int]) -> torch.Size:
        """Spatial size of the output."""
        per_axis = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        return torch.Size([(s + 2 * p - d * (w - 1) - 1) // t + 1 for s, w, t, p, d in per_axis])

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """The dense convolution of this geometry."""
        convolution, weight = CONV[len(self.stride)], self._formatted(weight)
        y: Tensor = convolution(x, weight, bias, self.stride, self.padding, self.dilation, groups)
        return y

    def pointwise(self, x: Tensor, matrices: Tensor, bias: Tensor | None = None) -> Tensor:
        """A 1x1 convolution by the ``(groups, out, in)`` matrices of each group of channels."""
        groups, out, channels = matrices.shape
        kernel = (1,) * len(self.stride)
        weight = self._formatted(matrices.reshape(groups * out, channels, *kernel))
        y: Tensor = CONV[len(kernel)](x, weight, bias, groups=groups)
        return self._formatted(y)  # a 1x1x1 convolution gives up the format; else no copy

    def gradient_of_input(
        self, grad: Tensor, weight: Tensor, x_shape: Sequence[int], groups: int
    ) -> Tensor:
        """Gradient with respect to the input; the input's values are not needed."""
        no_output_padding = [0] * len(self.stride)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            grad, grad.new_empty(1).expand(x_shape), self._formatted(weight), None,
            self.stride, self.padding, self.dilation, False, no_output_padding, groups,
            [True, False, False],
        )[0]  # fmt: skip
        return gradient

    def _formatted(self, a: Tensor) -> Tensor:
        return a.movedim(1, -1).contiguous().movedim(-1, 1) if self.channels_last else a


class _LowRankLinear(torch.autograd.Function):
    """``(x, u, core, vh, bias) -> (y, x @ vh^T)``; keeps the second output only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, u: Tensor, core: Tensor, vh: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        hidden = x @ vh.mT
        if x.shape[0] > u.shape[0]:
            return F.linear(hidden, u @ core, bias), hidden
        return F.linear(hidden @ core.mT, u, bias), hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, u, core, vh, _ = inputs
        ctx.save_for_backward(u, core, vh, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_y, grad_hidden = grads
        u, core, vh, hidden = ctx.saved_tensors
        grad_x = grad_core = grad_bias = None
        if grad_y is not None:
            projected = grad_y @ u
            if ctx.needs_input_grad[2]:
                grad_core = projected.mT @ hidden
            if ctx.needs_input_grad[4]:
                grad_bias = grad_y.sum(0)
            if ctx.needs_input_grad[0]:
                fold = grad_y.shape[0] > vh.shape[1]
                grad_x = projected @ (core @ vh) if fold else (projected @ core) @ vh
        if grad_hidden is not None and ctx.needs_input_grad[0]:
            through_hidden = grad_hidden @ vh
            grad_x = through_hidden if grad_x is None else grad_x + through_hidden
        return grad_x, None, grad_core, None, grad_bias


class _LowRankConv(torch.autograd.Function):
    """``(x, u, core, vh, bias, geometry) -> (y, x * vh)``; keeps the second output only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, u: Tensor, core: Tensor, vh: Tensor, bias: Tensor | None, geometry: ConvGeometry
    ) -> tuple[Tensor, Tensor]:
        hidden = geometry.convolve(x, vh, None, u.shape[0])
        return _left_product(hidden, u, core, bias, geometry), hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, u, core, vh, _, geometry = inputs
        ctx.save_for_backward(u, core, vh, output[1])
        ctx.geometry, ctx.x_shape = geometry, x.shape
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_y, grad_hidden = grads
        u, core, vh, hidden = ctx.saved_tensors
        geometry, groups, n = ctx.geometry, u.shape[0], vh[0].numel()
        grad_x = grad_core = grad_bias = None
        if grad_y is not None:
            projected = geometry.pointwise(grad_y, u.mT)
            if ctx.needs_input_grad[2]:
                grad_core = _channel_products(projected, hidden, groups)
            if ctx.needs_input_grad[4]:
                grad_bias = grad_y.sum((0, *range(2, grad_y.ndim)))
            if ctx.needs_input_grad[0] and grad_hidden is None and _positions(grad_y) > n:
                vh = (core @ vh.reshape(*core.shape[:2], n)).reshape(vh.shape)
                grad_hidden = projected
            elif ctx.needs_input_grad[0]:
                through_core = geometry.pointwise(projected, core.mT)
                grad_hidden = through_core if grad_hidden is None else grad_hidden + through_core
        if ctx.needs_input_grad[0] and grad_hidden is not None:
            grad_x = geometry.gradient_of_input(grad_hidden, vh, ctx.x_shape, groups)
        return grad_x, None, grad_core, None, grad_bias, None


def _left_product(
    hidden: Tensor, u: Tensor, core: Tensor, bias: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """From the ``k`` channels of each group to its outputs."""
    if _positions(hidden) > u.shape[1]:
        return geometry.pointwise(hidden, u @ core, bias)
    return geometry.pointwise(geometry.pointwise(hidden, core), u, bias)


def _frozen_parts(bias: Tensor | None, geometry: ConvGeometry, node: Any) -> tuple[Any, Any]:
    """What gives the output of ``_LowRankConv`` again, from what its node keeps."""
    u, core, _, hidden = (t.detach() for t in node.saved_tensors)
    return _left_product, (hidden, u, core, None if bias is None else bias.detach(), geometry)


def _eager(function: Any) -> Any:
    """The same Function for autograd alone: torch binds no arguments by name at each call."""

    class Eager(function):  # type: ignore[misc]
        generate_vmap_rule = False
        setup_context = torch.autograd.Function.setup_context

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

    return Eager


_EAGER = {function: _eager(function) for function in (_LowRankLinear, _LowRankConv)}


def _called(function: Any, *inputs: Any) -> Any:
    """``function.apply``, by its form for autograd alone where no transform or compiler runs."""
    if torch.compiler.is_compiling() or transformed():
        return function.apply(*inputs)
    return _EAGER[function].apply(*inputs)


def _positions(x: Tensor) -> int:
    """Entries of one channel: batch times spatial size."""
    return x.shape[0] * x.shape[2:].numel()


def _channel_products(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """Sum over batch and positions of ``left_i right_j``, per group: ``(groups, k, k)``."""
    k, positions = left.shape[1] // groups, left.shape[2:].numel()
    left, right = (t.reshape(t.shape[0], groups, k, positions) for t in (left, right))
    if holds_for_sure(positions >= k):
        return (left @ right.mT).sum(0)
    return torch.einsum("bgip,bgjp->gij", left, right)  # copies both, but holds no k x k an image


def require_width(x: Tensor, n: int, m: int) -> None:
    """Refuse an input that a linear layer of ``n`` inputs and ``m`` outputs cannot take.

    Raises:
        ShapeError: The last dimension of ``x`` is not ``n``.
    """
    require_tensor("a low-rank linear layer", "x", x)
    if x.ndim == 0 or x.shape[-1] != n:
        raise ShapeError(
            f"a low-rank linear layer of {n} inputs and {m} outputs needs x of shape (..., {n}), "
            f"got {tuple(x.shape)}; check the layer before it, or transpose x"
        )


def under_autocast(x: Tensor, *others: Tensor | None) -> Any:
    """The arguments in autocast's dtype where autocast is on, float64 left alone.

    Done outside the Function, so that casting is differentiated and the backward pass, which
    runs with autocast off, meets one dtype.
    """
    device = x.device.type
    if torch.compiler.is_compiling():  # torch 2.9 breaks a graph where it is asked
        available = device != "meta"
    else:
        available = torch.amp.is_autocast_available(device)
    if not available or not torch.is_autocast_enabled(device):
        return (x, *others)
    dtype = torch.get_autocast_dtype(device)

    def cast(a: Tensor | None) -> Tensor | None:
        return a if a is None or a.dtype == torch.float64 else a.to(dtype)

    return tuple(cast(a) for a in (x, *others))
