"""Measure what a model's data and loss feel of each of its weights, and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.lowrank.collect import Collector
from orthotrain.lowrank.metric import Metric, inputs_of, metric_of
from orthotrain.lowrank.sites import Site

#: From a model and one batch to a loss with a backward pass: one number, a mean over the batch.
LossFunction = Callable[[nn.Module, Any], Tensor]


class Measured(NamedTuple):
    """What data and loss showed of each site, by name; a site that saw nothing is not in it."""

    metrics: dict[str, Metric]
    inputs: dict[str, Tensor]


def measured(
    model: nn.Module,
    sites: Sequence[Site],
    data: Iterable[Any],
    loss: LossFunction | None,
    *,
    what: str = "compress",
) -> Measured:
    """The metric of each site, and second moments of its inputs.

    The model runs in evaluation mode. Modes, gradients and ``requires_grad`` are as before
    afterwards.

    Args:
        model: The inner model, which is called without its wrappers.
        sites: The layers.
        data: Batches. All are read, once.
        loss: Of the model and a batch. Without one, output gradients are not measured, and the
            model is called with the batch: the entries of a mapping by name, the first of a
            tuple or list, or else the batch itself.
        what: Who asks, for messages.

    Raises:
        ConfigError: No batch; a loss that is not one number with a backward pass; a model on
            several devices; no site saw any data.
        NonFiniteError: A loss, an input or a gradient holds NaN or infinity.
    """
    require_one_device(model, f"{what} with data")
    collector = Collector(sites, gradients=loss is not None)
    batches = 0
    with _left_as_it_was(model, sites), collector.active():
        for batch in data:
            batches += 1
            if loss is None:
                with torch.no_grad():
                    call(model, batch)
                collector.end_pass()
            else:
                with torch.enable_grad():
                    value = _checked(loss(model, batch), what)
                    value.backward()  # type: ignore[no-untyped-call]
                collector.end_pass()
    moments = {site: collector.moments(site) for site in sites}
    found = {s.name: m for s, each in moments.items() if (m := metric_of(s, each)) is not None}
    inputs = {s.name: a for s, each in moments.items() if (a := inputs_of(s, each)) is not None}
    if not batches or not found:
        lacking = "a layer that saw data" if batches else "at least one batch"
        why = (
            "check that loss calls the model that it is given"
            if batches
            else "an iterator that was read before is empty"
        )
        raise ConfigError(f"{what} needs {lacking}, got {batches} batches and none; {why}")
    return Measured(found, inputs)


def mean_loss(model: nn.Module, data: Sequence[Any], loss: LossFunction) -> float:
    """The mean loss over batches, in evaluation mode; modes are as before afterwards."""
    with in_evaluation(model), torch.no_grad():
        return sum(float(loss(model, batch)) for batch in data) / len(data)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module's own mode is as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def require_one_device(model: nn.Module, what: str) -> None:
    """Refuse a model on several devices, whose data cannot be seen in one place.

    Raises:
        ConfigError: Parameters or buffers are on several devices.
    """
    devices = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise ConfigError(
            f"{what} needs the model on one device to see its data, got {sorted(devices)}; move it "
            "to one device, or cut by weights alone"
        )


def call(model: nn.Module, batch: Any) -> Any:
    """The model on a batch: the entries of a mapping by name, the first of a list, or itself."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def _checked(value: Any, what: str) -> Tensor:
    """A loss that can be differentiated."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = type(value).__name__
        if isinstance(value, Tensor):
            graph = "with" if value.requires_grad else "without"
            got = f"a tensor of shape {tuple(value.shape)} {graph} a graph"
        raise ConfigError(
            f"{what} needs loss(model, batch) to give one number with a backward pass, got "
            f"{got}; return the loss tensor itself, not .item() or .detach(), and compute it "
            "without torch.no_grad()"
        )
    if not bool(torch.isfinite(value)):
        raise NonFiniteError(
            f"{what} needs a finite loss, got {float(value.detach())}; check data and model"
        )
    return value


@contextmanager
def _left_as_it_was(model: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """Evaluation mode and a gradient for every site; everything as before at the end."""
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    try:
        for p, _, _ in parameters:
            p.grad = None
        for site in sites:
            site.parameter.requires_grad_(True)
        with in_evaluation(model):
            yield
    finally:
        for p, gradient, required in parameters:
            p.requires_grad_(required)
            p.grad = gradient
