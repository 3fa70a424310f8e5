"""A low-rank layer where no gradient is recorded: plain products of matrices kept between calls.

Two products with ``left`` and ``right``: of a pair these are views, of frozen bases ``u @ core``
and ``vh``. Where a pass saves less arithmetic than a second call costs, one product with the
dense weight. So a layer keeps ``m k`` numbers of frozen bases, and ``m n`` once it has met few
inputs, or where its rank saves nothing. They go with the Parameter, or when it changes shape.

What is kept is made again when torch has counted a change of the factors, when their memory is
another, or when one of up to 32 numbers on the diagonal of the first is another. The last sees
what code writes through ``.data``, which torch does not count: to all of it, or to many rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from orthotrain.layers._contraction import CONV, require_width
from orthotrain.layers._factor_names import factor_names, pair_name
from orthotrain.layers._factors import LowRankModule
from orthotrain.layers._parameters import MADE_OF
from orthotrain.layers._tracing import transformed
from orthotrain.linalg._inputs import without_autocast

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Multiply-adds of a call of F.linear, by benchmarks/inference.py: below it one product is faster.
_CALL = 150_000
# Numbers of a diagonal that are read: 384 of them, a cache line each, cost a tenth of 768x768.
_LOOKED_AT = 32

# What each pass asks, looked up once: beside a product of width 128 a look-up counts.
_recording, _compiling = torch.is_grad_enabled, torch.compiler.is_compiling
_tracing, _addmm, _mm = torch._C._get_tracing_state, torch.addmm, torch.mm


class Kept:
    """The products of one weight, each with the transpose that a product from the right takes.

    Attributes:
        current: Whether a Parameter and a module still hold what this was made of.
        enter: Right factors, one below the other: the weight of the first of two products.
        leave: Left factors, one below the other: the weight of the second.
        few: Inputs of fewer numbers than this go through one product with the dense weight.
        module: Whose weight it is, if it is still there.
        owner: Forgets this when the Parameter goes.
    """

    __slots__ = (
        "_dense", "_factors", "_shape", "_three", "current", "enter", "few", "leave", "module",
        "owner",
    )  # fmt: skip
    owner: ref[nn.Parameter]

    def __init__(self, module: LowRankModule, weight: str, held: tuple[Tensor, ...]) -> None:
        layout, self.current = module.layout(module, weight), _check(module, weight, held)
        self.module = ref(module)
        with without_autocast(held[0]):
            left, right = (t.detach() for t in module.two_factors(weight))
        shape = layout.shape
        if left.ndim == len(shape) == 2 and shape[0] >= shape[1] and left.is_contiguous():
            # As in a pair: one input of 768 to 3072 takes .8 of the time. 3072 to 768 takes 1.06.
            left = left.mT.contiguous().mT
        if getattr(module, "rows_are_inputs", False):
            left, right, shape = right.mT, left.mT, shape[::-1]
        self._factors, self._shape = (left, right), shape
        self._dense: tuple[Tensor, Tensor] | None = None
        self._three: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None = None
        enter = right.reshape(-1, *shape[1:])
        leave = left.reshape(shape[0], -1, *(1,) * len(shape[2:]))
        if len(shape) > 2:  # filters that are not contiguous would be copied at each call
            enter, leave = enter.contiguous(), leave.contiguous()
        self.enter, self.leave = (enter, enter.mT), (leave, leave.mT)
        (*_, m, k), n = left.shape, right.shape[-1]
        saved, inputs = layout.blocks * (m * n - k * (m + n)), getattr(module, "in_channels", n)
        self.few = _CALL * inputs / saved if saved > 0 else inf

    def dense(self) -> tuple[Tensor, Tensor]:
        """The dense weight in the order of ``F.linear``, made when first asked for."""
        if self._dense is not None:
            return self._dense
        left, right = self._factors
        with without_autocast(left):
            dense = (left @ right).reshape(self._shape)
        if not transformed():  # else it is a stand-in that ends with the transform
            self._dense = dense, dense.mT
        return dense, dense.mT

    def in_three(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Left factors of query, key and value, and their right factors, or the one they share."""
        if self._three is not None:
            return self._three
        leave = self.leave[0]
        three = leave.chunk(3), torch.split(self.enter[0], leave.shape[1])
        if not transformed():
            self._three = three
        return three

    def applied(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x`` times the weight, of one block, in the way that takes least time."""
        if x.numel() < self.few:
            return F.linear(x, self.dense()[0], bias)
        return F.linear(F.linear(x, self.enter[0]), self.leave[0], bias)


def plain_linear(module: Any, x: Tensor) -> Tensor | None:
    """The output of a linear layer without gradients, by the plain products that take least time.

    Args:
        module: Holds one ``weight`` in one block, and perhaps a ``bias``.
        x: ``(*rows, inputs)``.

    Returns:
        ``(*rows, outputs)``, or None where the pass has to go another way; see ``plain_factors``.

    Raises:
        ShapeError: The last dimension of ``x`` does not fit.
    """
    if (kept := plain_factors(module)) is None:
        return None
    bias = bias_of(module)
    try:
        if x.ndim != 2 or bias is None:
            return kept.applied(x, bias)
        # What F.linear calls, a microsecond earlier.
        if x.numel() < kept.few:
            return _addmm(bias, x, kept.dense()[1])
        return _addmm(bias, _mm(x, kept.enter[1]), kept.leave[1])
    except (AttributeError, RuntimeError, TypeError):
        require_width(x, kept.enter[0].shape[1], kept.leave[0].shape[0])
        raise


def plain_conv(module: Any, x: Tensor) -> Tensor | None:
    """The output of a convolution without gradients, by plain convolutions, or None.

    Args:
        module: Holds one ``weight``.
        x: What ``nn.Conv2d`` takes.

    Returns:
        As ``nn.Conv2d``, in the same memory format, or None where the pass has to go another way:
        also where two plain convolutions lose the format that one keeps.
    """
    loses = len(module.kernel_size) != 2 or module.padding_mode != "zeros"
    if loses and not x.is_contiguous():
        return None
    if (kept := plain_factors(module)) is None:
        return None
    if x.numel() < kept.few:
        y: Tensor = module._conv_forward(x, kept.dense()[0], bias_of(module))
        return y
    hidden = module._conv_forward(x, kept.enter[0], None)
    leave = kept.leave[0]
    y = CONV[leave.ndim - 2](hidden, leave, bias_of(module), groups=module.groups)
    return y


def plain_factors(module: LowRankModule, weight: str = "weight") -> Kept | None:
    """What is kept of a weight of a module, made anew where that has changed.

    None where gradients are recorded or a graph is traced; where a transform of ``torch.func``
    runs and nothing is kept yet; where the factors are not the module's own Parameters and buffers
    on the CPU; and where another module has the same Parameter, and came first.
    """
    if _recording() or _compiling() or _tracing() is not None:
        return None
    pair, core, _, _ = _names(weight)
    own = module._parameters.get(pair)
    if own is None:
        own = module._parameters.get(core)
    kept: Kept | None = MADE_OF.get(id(own))
    if kept is None or not kept.current(own, module):
        return _keep(module, weight)
    return kept


def bias_of(module: Any) -> Tensor | None:
    """The bias of a module, without the search that reading a Parameter by its name is."""
    try:
        bias: Tensor | None = module._parameters["bias"]
    except KeyError:  # computed: a parametrization, or a replica's
        bias = module.bias
    return bias


@cache
def _names(weight: str) -> tuple[str, str, str, str]:
    u, core, vh = factor_names(weight)
    return pair_name(weight), core, u, vh


def _keep(module: LowRankModule, weight: str) -> Kept | None:
    if transformed():
        return None
    pair, core, u, vh = _names(weight)
    own = module._parameters.get(pair)
    held = (own,) if own is not None else (
        module._parameters.get(core), module._buffers.get(u), module._buffers.get(vh)
    )  # fmt: skip
    tensors = tuple(t for t in held if t is not None and type(t) in (nn.Parameter, Tensor))
    if len(tensors) < len(held) or type(held[0]) is not nn.Parameter:
        return None
    if any(t.ndim < 2 or t.device.type != "cpu" or t.is_inference() for t in tensors):
        return None
    key, first = id(held[0]), held[0]
    before: Kept | None = MADE_OF.get(key)
    if before is not None and before.module() not in (module, None):
        return None
    _watch_steps()
    kept = MADE_OF[key] = Kept(module, weight, tensors)
    kept.owner = ref(first, lambda _: MADE_OF.pop(key, None))
    return kept


@cache
def _watch_steps() -> None:
    """Forget what was made of a weight with each step of its optimizer.

    Fused optimizers write without counting a version, and in half precision such a step may leave
    every number as it was that is looked at.
    """
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> None:
    if MADE_OF:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                MADE_OF.pop(id(parameter), None)


def _check(module: LowRankModule, weight: str, held: tuple[Tensor, ...]) -> Callable[..., bool]:
    """Whether a Parameter and a module still hold what they hold now, and nothing was written."""
    itself, version = ref(module), held[0]._version
    # Aliases keep the memory alive, so that no later tensor can lie at the same address.
    alias, *aliases = (t.detach() for t in held)
    diagonal = alias.view(_BITS[alias.itemsize]).diagonal(dim1=-2, dim2=-1)
    numbers = diagonal[..., :: -(-diagonal.shape[-1] // _LOOKED_AT)].numpy().tobytes
    bits = numbers()

    def current(own: Tensor, module: LowRankModule) -> bool:
        return (
            own._version == version
            and itself() is module
            and own.is_set_to(alias)
            and numbers() == bits
        )

    if len(held) == 1:
        return current
    u, vh = held[1:]
    u_name, vh_name = _names(weight)[2:]
    u_version, vh_version, (u_at, vh_at) = u._version, vh._version, (a.data_ptr() for a in aliases)

    def all_current(own: Tensor, module: LowRankModule) -> bool:
        buffers = module._buffers
        return (
            own._version == version
            and u._version == u_version
            and vh._version == vh_version
            and buffers.get(u_name) is u
            and buffers.get(vh_name) is vh
            and u.data_ptr() == u_at
            and vh.data_ptr() == vh_at
            and itself() is module
            and own.is_set_to(alias)
            and numbers() == bits
        )

    return all_current
