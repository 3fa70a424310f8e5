"""Whitening of a batch: two passes over the activation forward and two backward, part by part.

Written out, the mean, the centring, the covariance, the product and the shift are passes of their
own, and so are the terms of the derivative. Here a part of the activation goes through all that a
pass has to do while it lies in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from orthotrain.layers._channel_groups import (
    Layout,
    affine_map,
    centred_covariance,
    for_each,
    per_group,
    plus_transposed,
)
from orthotrain.layers._tracing import exporting, transformed

#: What makes the map of a batch from its mean ``(groups, c, 1)``, its covariance ``(groups, c, c)``
#: and the parameters: ``a`` and ``shift`` of ``a (x - mean) + shift``.
MakeMap = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]

# Numbers of a part on a CPU: small enough for the cache, large enough for the calls. Elsewhere all
# is one part, since a part costs the launch of its kernels.
_PART_ON_CPU: Final = 2**18
# From this many channels on, half of a covariance is not computed: it is symmetric.
_HALVED_FROM: Final = 32
# A mean below this many deviations is taken off after the product, where it costs no pass. It
# multiplies the rounding of a sum by the square root of its square and one.
_NEAR: Final = 2.0


def whiten(
    x: Tensor, layout: Layout, weight: Tensor | None, bias: Tensor | None, make: MakeMap
) -> Tensor:
    """``a (x - mean) + shift`` with the map that ``make`` gives for the batch itself.

    Args:
        x: ``(k, c, l)`` as ``Layout.matrices`` gives them, of any floating-point dtype.
        layout: How ``x`` is laid out.
        weight: A parameter that ``make`` uses, or None.
        bias: Another.
        make: Is called with mean and covariance in float32 (float64 for float64 input).

    Returns:
        Of the shape, dtype and layout of ``x``.

    Note:
        Differentiable, any number of times. Keeps ``x`` and nothing else of its size.
    """
    traced = torch.compiler.is_compiling() or exporting() or transformed()
    if traced or type(x) is not Tensor:
        return written_out(x, layout, weight, bias, make)
    y: Tensor = _Whitening.apply(x, weight, bias, layout, make)  # type: ignore[no-untyped-call]
    return y


def written_out(
    x: Tensor, layout: Layout, weight: Tensor | None, bias: Tensor | None, make: MakeMap
) -> Tensor:
    """``whiten`` by plain operations: for second derivatives, compilers and transforms."""
    centred, mean, covariance = centred_covariance(x.to(_work(x)), layout.groups)
    a, shift = make(mean, covariance, weight, bias)
    return affine_map(a, centred, shift, rows=layout.rows).to(x.dtype)


class _Whitening(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        layout: Layout,
        make: MakeMap,
    ) -> Tensor:
        mean, covariance = _moments(x, layout)
        small = [
            None if t is None else t.detach().requires_grad_(t.is_floating_point())
            for t in (mean, covariance, weight, bias)
        ]
        with torch.set_grad_enabled(any(ctx.needs_input_grad)):
            a, shift = make(*small)  # type: ignore[arg-type]
        far = _is_far(mean, covariance)
        ctx.save_for_backward(x, weight, bias)
        ctx.layout, ctx.make, ctx.small, ctx.map, ctx.far = layout, make, small, (a, shift), far
        return _mapped(x, a.detach(), shift.detach(), mean if far else None, mean, layout)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a second derivative is asked for
            inputs = [t for t, want in zip((x, weight, bias), wanted, strict=True) if want]
            y = written_out(x, ctx.layout, weight, bias, ctx.make)
            found = iter(torch.autograd.grad(y, inputs, g, create_graph=True))
            return *(next(found) if want else None for want in wanted), None, None
        layout: Layout = ctx.layout
        mean, covariance, *parameters = ctx.small
        g_a, g_shift = _map_gradient(g, x, mean, layout, far=ctx.far)
        asked = [mean, covariance, *(t for t in parameters if t is not None)]
        a, shift = ctx.map
        made = 2 if shift.requires_grad else 1  # without a bias the shift may be a constant
        g_mean, g_covariance, *rest = torch.autograd.grad(
            (a, shift)[:made], asked, (g_a, g_shift)[:made], retain_graph=True, allow_unused=True
        )
        found = iter(rest)
        gradients = [None if t is None else next(found) for t in parameters]
        if not wanted[0]:
            return None, *gradients, None, None
        a, samples = a.detach(), layout.samples
        constant = -(a.mT @ g_shift)
        constant = (constant if g_mean is None else constant + g_mean) / samples
        symmetric = plus_transposed(g_covariance) / samples
        g_x = _mapped_back(g, x, a, symmetric, constant, mean.detach(), layout, far=ctx.far)
        return g_x, *gradients, None, None


def _work(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _parts(layout: Layout, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same part of each of some ``(k, c, l)``, whole samples at a time."""
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= _PART_ON_CPU:
        yield tensors
        return
    dim, unit = (2, 1) if layout.rows else (0, layout.groups)
    each = max(1, _PART_ON_CPU * first.shape[dim] // unit // first.numel()) * unit
    yield from zip(*(torch.split(t, each, dim) for t in tensors), strict=True)


def _moments(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Mean and biased covariance, each part about its own mean, as Chan et al. (1983) add them."""
    work, groups, size = _work(x), layout.groups, layout.size
    half = size // 2 if size >= _HALVED_FROM else 0
    scatter = x.new_zeros(groups, size, size, dtype=work)
    counts, means = [], []
    centred = x.new_empty(0, dtype=work)
    for (part,) in _parts(layout, x):
        count = part.numel() // (groups * size)
        mean = per_group(part.sum(dim=-1, keepdim=True, dtype=work), groups) / max(1, count)
        if centred.shape != part.shape:
            centred = _like(part, layout, work)
        torch.sub(part, for_each(mean, part), out=centred)
        if half:
            scatter[:, :half, :half] += per_group(centred[:, :half] @ centred[:, :half].mT, groups)
        scatter[:, half:] += per_group(centred[:, half:] @ centred.mT, groups)
        counts.append(float(count))
        means.append(mean)
    share = torch.tensor(counts, dtype=work, device=x.device) / max(1, layout.samples)
    stack = torch.cat(means, dim=-1)
    mean = (stack * share).sum(dim=-1, keepdim=True)
    apart = (stack - mean) * share.sqrt()
    covariance = scatter / max(1, layout.samples) + apart @ apart.mT
    # A product need not be symmetric to the last bit.
    lower = covariance.tril(-1)
    return mean, lower + lower.mT + torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))


def _is_far(mean: Tensor, covariance: Tensor) -> bool:
    variance = covariance.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return not bool((mean.square() <= _NEAR**2 * variance).all())


def _like(x: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """New memory laid out as ``x`` is, and no view, which nobody could write into."""
    groups, size, last = x.shape
    strides = (size, 1, groups * size) if layout.rows else (size * last, last, 1)
    return x.new_empty_strided(x.shape, strides, dtype=dtype)


def _put(into: Tensor, a: Tensor, x: Tensor, *, rows: bool) -> None:
    """``into = a x`` for every matrix of a group, laid out as ``x`` is."""
    if rows:
        torch.bmm(x.mT, a.mT, out=into.mT)
    else:
        torch.bmm(for_each(a, x), x, out=into)


def _mapped(
    x: Tensor, a: Tensor, shift: Tensor, offset: Tensor | None, mean: Tensor, layout: Layout
) -> Tensor:
    """``a (x - mean) + shift``, the mean taken off before the product if it is the offset."""
    y = _like(x, layout, x.dtype)
    if offset is None:
        shift = shift - a @ mean
    for part, into in _parts(layout, x, y):
        work = part.to(a.dtype)
        if offset is not None:
            work = work - for_each(offset, part)
        result = into if into.dtype == a.dtype else torch.empty_like(work)
        _put(result, a, work, rows=layout.rows)
        result.add_(for_each(shift, part))
        if result is not into:
            into.copy_(result)
    return y


def _map_gradient(
    g: Tensor, x: Tensor, mean: Tensor, layout: Layout, *, far: bool
) -> tuple[Tensor, Tensor]:
    """Gradients at ``a`` and ``shift`` of ``a (x - mean) + shift``."""
    work, groups = mean.dtype, layout.groups
    g_a = mean.new_zeros(groups, layout.size, layout.size)
    g_shift = torch.zeros_like(mean)
    for g_part, part in _parts(layout, g, x):
        wide, centred = g_part.to(work), part.to(work)
        if far:
            centred = centred - for_each(mean, part)
        g_a += per_group(wide @ centred.mT, groups)
        g_shift += per_group(wide.sum(dim=-1, keepdim=True), groups)
    return (g_a if far else g_a - g_shift @ mean.mT), g_shift


def _mapped_back(  # noqa: PLR0913 - the terms of one derivative
    g: Tensor, x: Tensor, a: Tensor, symmetric: Tensor, constant: Tensor, mean: Tensor,
    layout: Layout, *, far: bool,
) -> Tensor:  # fmt: skip
    """``a^T g + symmetric (x - mean) + constant``."""
    g_x = _like(x, layout, x.dtype)
    if not far:
        constant = constant - symmetric @ mean
    for g_part, part, into in _parts(layout, g, x, g_x):
        wide, centred = g_part.to(a.dtype), part.to(a.dtype)
        if far:
            centred = centred - for_each(mean, part)
        result = into if into.dtype == a.dtype else torch.empty_like(wide)
        _put(result, a.mT, wide, rows=layout.rows)
        if layout.rows:
            result.mT.baddbmm_(centred.mT, symmetric)
        else:
            result.baddbmm_(for_each(symmetric, part), centred)
        result.add_(for_each(constant, part))
        if result is not into:
            into.copy_(result)
    return g_x
