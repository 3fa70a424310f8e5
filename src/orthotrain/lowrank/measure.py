"""Measure what a model's data and loss feel of each of its weights, and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.lowrank.collect import Collector
from orthotrain.lowrank.metric import Metric, metric_of
from orthotrain.lowrank.sites import Site

#: From a model and one batch to a loss with a backward pass: one number, a mean over the batch.
LossFunction = Callable[[nn.Module, Any], Tensor]


def measured_metrics(
    model: nn.Module,
    sites: Sequence[Site],
    data: Iterable[Any],
    loss: LossFunction | None,
    *,
    what: str = "compress",
) -> dict[str, Metric | None]:
    """The metric of each site, by name; None where a site saw nothing.

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
                    _call(model, batch)
                collector.end_pass()
            else:
                with torch.enable_grad():
                    value = _checked(loss(model, batch), what)
                    value.backward()  # type: ignore[no-untyped-call]
                collector.end_pass()
    found = {site.name: metric_of(site, collector.moments(site)) for site in sites}
    if not batches or not any(found.values()):
        lacking = "a layer that saw data" if batches else "at least one batch"
        why = (
            "check that loss calls the model that it is given"
            if batches
            else "an iterator that was read before is empty"
        )
        raise ConfigError(f"{what} needs {lacking}, got {batches} batches and none; {why}")
    return found


def mean_loss(model: nn.Module, data: Sequence[Any], loss: LossFunction) -> float:
    """The mean loss over batches, in evaluation mode; modes are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            return sum(float(loss(model, batch)) for batch in data) / len(data)
    finally:
        _set_modes(modes)


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
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


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    else:
        model(batch[0] if isinstance(batch, tuple | list) else batch)


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
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    try:
        model.eval()
        for p, _, _ in parameters:
            p.grad = None
        for site in sites:
            site.parameter.requires_grad_(True)
        yield
    finally:
        _set_modes(modes)
        for p, gradient, required in parameters:
            p.requires_grad_(required)
            p.grad = gradient
