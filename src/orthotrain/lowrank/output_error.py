"""How far a cut moves the outputs of a layer and of a model, relative to their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from orthotrain.linalg import MetricSVD
from orthotrain.linalg.decompose import widest_dtype
from orthotrain.lowrank.look import Decomposition
from orthotrain.lowrank.measure import LossFunction, call, in_evaluation
from orthotrain.lowrank.metric import has_inputs_in_front, is_packed
from orthotrain.lowrank.sites import Site


def matrices_of(site: Site) -> Tensor:
    """``(blocks, outputs, inputs)`` of a site's weight, multiplied out in float64."""
    module, weight = site.owners[0]
    exact = widest_dtype(site.parameter.device)
    if site.factored:
        left, right = (t.detach().to(exact) for t in module.two_factors(weight))  # type: ignore[operator]
        value: Tensor = left @ right
    else:
        value = site.layout.matrix(site.parameter.detach().to(exact))
    value = value if value.ndim == 3 else value[None]
    if is_packed(site) and site.layout.blocks == 1:  # one basis, three projections
        value = value.reshape(3, -1, value.shape[-1])
    return value.mT if has_inputs_in_front(site) else value


def layer_error(before: Tensor, after: Tensor, a: Tensor) -> float:
    """``|x (w - w')^T| / |x w^T|`` over all inputs ``x`` of a layer, its bias left out.

    Args:
        before: ``(blocks, m, n)``.
        after: ``(blocks, m, n)``.
        a: ``(blocks, n, n)``, second moments of the inputs; ``(1, n)`` is a diagonal.
    """
    lost, whole = _energy(before - after, a), _energy(before, a)
    return (lost / whole) ** 0.5 if whole > 0 else 0.0


def errors_by_rank(site: Site, found: MetricSVD | Decomposition, a: Tensor) -> Tensor:
    """``(r + 1,)``: ``layer_error`` of a site that is cut to each rank from zero on.

    The cut part is ``sum_i left_i s_i right_i`` over ``i >= k``. Its energy is the sum over the
    last rows and columns of ``(s left^T left s) * (right a right^T)``.

    Args:
        site: Dense or low-rank.
        found: What its core or dense weight was decomposed into.
        a: As in ``layer_error``.
    """
    left, s, right = (t.to(a) for t in found)
    if site.factored:
        u, _, vh = (t.to(a) for t in site.factors)
        left, right = u @ left, right @ vh
    left, s, right = (t[None] if site.layout.blocks == 1 else t for t in (left, s, right))
    if has_inputs_in_front(site):
        left, right = right.mT, left.mT
    left = left * s[:, None, :]
    if len(a) != len(left):  # one basis, three projections
        left, right = left.reshape(len(a), -1, left.shape[-1]), right.expand(len(a), -1, -1)
    seen = right * a[:, None, :] @ right.mT if a.ndim == 2 else right @ a @ right.mT
    products = ((left.mT @ left) * seen).sum(0)
    tails = products.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
    tails = torch.cat((tails, tails.new_zeros(1))).clamp_(min=0)
    return (tails / tails[0]).sqrt() if float(tails[0]) > 0 else torch.zeros_like(tails)


def least_rank(errors: Tensor, bound: float) -> int:
    """The smallest rank from which on no rank has a larger error, at least one."""
    above = (errors > bound).nonzero()
    return max(1, int(above[-1]) + 1) if len(above) else 1


@dataclass(frozen=True)
class Seen:
    """What a model gave for held-out batches.

    Attributes:
        outputs: One tensor per call of the model, on its device.
        loss: Mean over the batches; None without a loss.
    """

    outputs: list[Tensor]
    loss: float | None


def seen_on(model: nn.Module, batches: Sequence[Any], loss: LossFunction | None) -> Seen:
    """Outputs of a model and its mean loss, in evaluation mode and without gradients.

    Args:
        model: The inner model.
        batches: All are shown to it.
        loss: Of the model and a batch; the model's output is caught on the way. Without one the
            model is called with the batch.
    """
    outputs: list[Tensor] = []

    def caught(_: nn.Module, __: object, output: Any) -> None:
        if (tensor := _main_tensor(output)) is not None:
            outputs.append(tensor)

    hook = model.register_forward_hook(caught)
    try:
        with in_evaluation(model), torch.no_grad():
            values = [(call if loss is None else loss)(model, batch) for batch in batches]
    finally:
        hook.remove()
    return Seen(outputs, None if loss is None else sum(map(float, values)) / len(values))


def model_error(before: Seen, after: Seen) -> float | None:
    """``|y - y'| / |y|`` over all outputs together; None where they do not compare."""
    pairs = list(zip(before.outputs, after.outputs, strict=False))
    if not pairs or len(before.outputs) != len(after.outputs):
        return None
    if any(y.shape != z.shape for y, z in pairs):
        return None
    lost = sum(float((y.double() - z.double()).square().sum()) for y, z in pairs)
    whole = sum(float(y.double().square().sum()) for y, _ in pairs)
    return (lost / whole) ** 0.5 if whole > 0 else None


def _energy(w: Tensor, a: Tensor) -> float:
    w, a = w.double(), a.double()
    through = w * a[:, None, :] if a.ndim == 2 else w @ a
    return float((through * w).sum().clamp(min=0))


def _main_tensor(output: Any) -> Tensor | None:
    """``logits`` of an output that has them, else its first floating tensor with dimensions."""
    logits = getattr(output, "logits", None)
    output = logits if isinstance(logits, Tensor) else output
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    found = (t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.ndim)
    return next(found, None)
