"""A low-rank layer where no gradient is recorded: plain products of matrices kept between calls.

Two products with ``left`` and ``right``; of a pair these are views, of frozen bases ``u @ core``
and ``vh``. Where a pass saves less arithmetic than a second call costs, one product with the
dense weight. What is kept is made again when torch has counted a change of the factors, when
their memory is another, or when a number on their first diagonal is another. The last sees what
code writes through ``.data``, which torch does not count.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.layers._contraction import ConvGeometry, require_width
from orthotrain.layers._factors import LowRankModule
from orthotrain.layers._tracing import transformed
from orthotrain.linalg._inputs import without_autocast

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Multiply-adds of a call of F.linear, by benchmarks/inference.py: below it one product is faster.
_CALL = 150_000


class _Kept:
    """The matrices of one module, and what they were made of."""

    __slots__ = ("_aliases", "_bits", "_dense", "_diagonal", "left", "made_of", "right", "saved")

    def __init__(self, module: LowRankModule, held: tuple[Tensor, ...]) -> None:
        # Aliases keep the memory alive, so that no later tensor can lie at the same address.
        self._aliases = tuple(t.detach() for t in held)
        self.made_of = [(t, t._version, t.data_ptr(), t.shape) for t in held]
        first = self._aliases[0]
        self._diagonal = first.view(_BITS[first.itemsize]).diagonal().numpy()
        self._bits = self._diagonal.tobytes()
        with without_autocast(first):
            self.left, self.right = (t.detach() for t in module.two_factors())
        self.saved = (
            self.left.shape[0] * self.right.shape[1] - self.left.numel() - self.right.numel()
        )
        self._dense: Tensor | None = None

    def dense(self) -> Tensor:
        """The weight ``(m, n)``, made when first asked for."""
        if self._dense is None:
            with without_autocast(self.left):
                self._dense = self.left @ self.right
        return self._dense

    def filters(self, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """``right`` as ``k`` filters, and ``left`` as ``(1, m, k)``, both made contiguous once."""
        self.left, self.right = self.left.contiguous(), self.right.contiguous()
        return self.right.reshape(len(self.right), -1, *kernel), self.left[None]

    def current(self, held: tuple[Tensor | None, ...]) -> bool:
        """Whether the factors are still those that it was made of."""
        for now, (own, version, address, shape) in zip(held, self.made_of, strict=False):
            if now is not own or own._version != version:
                return False
            if own.data_ptr() != address or own.shape != shape:
                return False
        return self._diagonal.tobytes() == self._bits and len(held) == len(self.made_of)


# Beside the modules, not in them: a copied, moved or saved module never carries them along.
_KEPT: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def plain_linear(
    module: LowRankModule, x: Tensor, bias: Tensor | None, *, inputs_first: bool = False
) -> Tensor | None:
    """``x @ weight^T + bias`` without gradients, by the plain products that take least time.

    Args:
        module: Holds one ``weight``.
        x: ``(*rows, n)``, or ``(*rows, m)`` with ``inputs_first``.
        bias: Added to each row, or None.
        inputs_first: The rows of the weight are its inputs: ``x @ weight + bias``.

    Returns:
        The result, or None where the pass has to go another way; see ``plain_factors``.

    Raises:
        ShapeError: The last dimension of ``x`` does not fit.
    """
    kept = plain_factors(module)
    if kept is None:
        return None
    enter, leave = (kept.left.mT, kept.right.mT) if inputs_first else (kept.right, kept.left)
    try:
        if x.numel() * kept.saved < _CALL * enter.shape[1]:
            dense = kept.dense()
            return F.linear(x, dense.mT if inputs_first else dense, bias)
        return F.linear(F.linear(x, enter), leave, bias)
    except (AttributeError, RuntimeError, TypeError):
        require_width(x, enter.shape[1], leave.shape[0])
        raise


def plain_conv(
    module: Any, x: Tensor, bias: Tensor | None, geometry: ConvGeometry
) -> Tensor | None:
    """The convolution with the one ``weight`` of a module, without gradients, or None.

    Args:
        module: Holds one ``weight`` in one block.
        x: ``(batch, channels, *size)``, padded already where the padding is not with zeros.
        bias: ``(out,)`` or None.
        geometry: Stride, zero padding and dilation.
    """
    kept = plain_factors(module)
    if kept is None:
        return None
    filters, leave = kept.filters(module.kernel_size)
    return geometry.pointwise(geometry.convolve(x, filters, None, 1), leave, bias)


def plain_factors(module: LowRankModule) -> _Kept | None:
    """What is kept of the one ``weight`` of a module, made anew where that has changed.

    None where gradients are recorded, a graph is traced or a transform of ``torch.func`` runs;
    where two products are no cheaper than the dense one; and where the factors are several blocks
    or not the module's own Parameters and buffers on the CPU.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed():
        return None
    parameters, buffers = module._parameters, module._buffers
    pair = parameters.get("pair")
    held = (
        (parameters.get("core"), buffers.get("u"), buffers.get("vh")) if pair is None else (pair,)
    )
    kept = _KEPT.get(module)
    if kept is None or not kept.current(held):
        kept = _keep(module, held)
    return None if kept is None or kept.saved < 0 else kept


def _keep(module: LowRankModule, held: tuple[Tensor | None, ...]) -> _Kept | None:
    _KEPT.pop(module, None)
    tensors = tuple(t for t in held if t is not None and type(t) in (nn.Parameter, Tensor))
    if len(tensors) < len(held) or type(held[0]) is not nn.Parameter:
        return None
    if any(t.ndim != 2 or t.device.type != "cpu" or t.is_inference() for t in tensors):
        return None
    kept = _KEPT[module] = _Kept(module, tensors)
    return kept
