"""What a norm keeps of a low-rank convolution for backward: recomputed, not kept.

A convolution in factors keeps the ``k`` channels between them. The norm after it keeps what enters
it, the ``m`` channels that the convolution returns. These are a 1x1 product away from the ``k``:
with both kept, a network in factors would keep more than the dense one. So the next low-rank
convolution looks back over the graph, and where it finds such a norm, it has torch keep nothing
there and multiply again in backward. The gradients are those of the same numbers.

A norm that no low-rank convolution follows keeps what it kept; and so does one whose saved tensors
have hooks already, as inside ``torch.utils.checkpoint`` or ``save_on_cpu``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from orthotrain.errors import StateError
from orthotrain.layers._tracing import exporting, transformed
from orthotrain.linalg._inputs import without_autocast

_NOTE = "orthotrain: multiplied again"
_NORMS = {
    f"{name}Backward0"
    for name in ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm")
}
# Nodes looked at: ReLU, sum, norm and a pooling or two, on both branches of a residual block.
_REACH = 10
# The product is that of m k of 3 k (m + n) multiply-adds in training: a 15th of the layer at most.
_LEAST_RATIO = 4
# A number that is not kept costs k multiply-adds. In benchmarks/conv_activations.py ranks up to 57
# cost 2 % of the step and are most of what can be saved; all cost 3 to 5 %.
_LARGEST_RANK = 96

Parts = Callable[[Any], tuple[Callable[..., Tensor], tuple[Any, ...]]]


def worth_it(m: int, n: int, k: int) -> bool:
    """Whether ``m`` channels are cheap to compute again from ``k``, beside a layer of them."""
    return n >= _LEAST_RATIO * m and k <= _LARGEST_RANK


def can_be_recomputed(y: Tensor, parts: Parts) -> Tensor:
    """``y``, with the note that it is a product of what its node of the graph keeps anyway.

    Args:
        y: The output of a convolution, of which the norm after it may then keep nothing.
        parts: Of the node: a function, and its arguments, that give ``y`` again.
    """
    if not _left_to_others() and y.grad_fn is not None and not _hooked():
        _notes(y.grad_fn)[_NOTE] = parts, y._version
    return y


def keep_less_before(x: Tensor) -> None:
    """Have norms shortly before ``x`` keep nothing of what low-rank convolutions gave them."""
    if _left_to_others() or x.grad_fn is None:
        return
    nodes: list[Any] = [x.grad_fn]
    for node in nodes:
        if node.name() in _NORMS:
            source, index = node.next_functions[0]
            if source is not None and index == 0 and _notes(source).get(_NOTE) is not None:
                _recompute(node, _Again(source, *_notes(source)[_NOTE]))
                _notes(source)[_NOTE] = None
        elif _NOTE not in _notes(node):
            before = [source for source, _ in node.next_functions if source is not None]
            nodes.extend(before[: _REACH - len(nodes)])


def _left_to_others() -> bool:
    """Whether a compiler, an exporter or a transform decides what is kept."""
    return torch.compiler.is_compiling() or exporting() or transformed()


def _hooked() -> bool:
    """Whether what is saved now goes through hooks, which reading it would set off."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _notes(node: Any) -> dict[Any, Any]:
    """What a node of the graph carries for whoever wants to leave something there."""
    notes: dict[Any, Any] = node.metadata
    return notes


class _Again:
    """A norm's input: kept, or what gives it again. Read once, where the norm has no hooks yet."""

    def __init__(self, source: Any, parts: Parts, version: int) -> None:
        self.source, self.parts, self.version = source, parts, version

    def pack(self, y: Tensor) -> Tensor | None:
        """Keep ``y`` only where it was written to before the norm."""
        if y._version != self.version:
            return y
        self.function, self.given = self.parts(self.source)
        self.tensors = [t for t in self.given if isinstance(t, Tensor)]
        self.versions = [t._version for t in self.tensors]
        return None

    def unpack(self, kept: Tensor | None) -> Tensor:
        """The input of the norm."""
        if kept is not None:
            return kept
        if [t._version for t in self.tensors] != self.versions:
            raise StateError(
                "backward needs the factors of a low-rank convolution as they were in forward, and "
                "they were written to in between; step the optimizer after backward"
            )
        with torch.no_grad(), without_autocast(self.tensors[0]):
            return self.function(*self.given)


def _recompute(norm: Any, again: _Again) -> None:
    """Replace what ``norm`` keeps of its input by what gives it again."""
    try:
        norm._raw_saved_input.register_hooks(again.pack, again.unpack)
    except RuntimeError:  # hooks are there already, or the graph has been freed
        return
    finally:
        del again.source, again.parts  # a graph that holds itself would stay
