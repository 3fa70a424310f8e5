"""What methods read off an optimizer: groups, learning rates, the scale of its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from orthotrain.errors import ConfigError


def require_model(what: str, model: object, optimizer: object) -> None:
    """Raise ConfigError unless a model stands where a model is needed."""
    if isinstance(model, nn.Module):
        return
    swapped = "model and optimizer are swapped; " if isinstance(optimizer, nn.Module) else ""
    raise ConfigError(
        f"{what}: need a torch.nn.Module first, got {type(model).__name__}; {swapped}"
        f"the order is {what}(model, optimizer, ...)"
    )


def groups_of(optimizers: Iterable[Optimizer]) -> dict[nn.Parameter, dict[str, Any]]:
    """The parameter group of every parameter; loading a state makes new ones."""
    return {p: group for each in optimizers for group in each.param_groups for p in group["params"]}


def kinds_of(optimizers: Sequence[Optimizer]) -> str:
    """Names of their classes, such as ``Muon, AdamW``."""
    return ", ".join(type(each).__name__ for each in optimizers)


def learning_rate(group: dict[str, Any]) -> float:
    """The group's learning rate as a plain number, whatever it is kept as."""
    return float(group["lr"])


def rates_of(optimizers: Iterable[Optimizer]) -> str:
    """The learning rate of each group, in order; a group without one counts as none."""
    rates = (group.get("lr") for each in optimizers for group in each.param_groups)
    return ", ".join("none" if rate is None else str(float(rate)) for rate in rates)


def rates_are_zero(optimizer: Optimizer) -> bool:
    """Whether every learning rate is zero; never waits for a device.

    A rate kept on an accelerator counts as not zero.
    """
    return all(_is_zero(group.get("lr")) for group in optimizer.param_groups)


def _is_zero(rate: object) -> bool:
    if isinstance(rate, Tensor) and rate.device.type != "cpu":
        return False
    return rate is not None and bool(rate == 0)


def is_no_step(optimizer: Optimizer) -> bool:
    """Whether a step about to be taken trains nothing: no learning rate and no gradient.

    ``torch.distributed.checkpoint`` takes such a step to make an optimizer's state. With
    gradients a step at a rate of zero is one: statistics are gathered in it. Gradients are looked
    at where every rate is zero, so ordinary training does not wait for them.
    """
    return rates_are_zero(optimizer) and not any(
        _has_values(parameter.grad)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    )


def _has_values(gradient: Tensor) -> bool:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    found = values.ne(0).any()
    # Of a sharded gradient every process must find the same.
    return bool(found.full_tensor() if hasattr(found, "full_tensor") else found)


def require_learning_rate(method: str, optimizers: Iterable[Optimizer]) -> None:
    """Raise ConfigError unless every parameter group has a learning rate."""
    for optimizer in optimizers:
        if any("lr" not in group for group in optimizer.param_groups):
            raise ConfigError(
                f"{method}: a parameter group of {type(optimizer).__name__} has no 'lr', and the "
                "step is measured in learning rates"
            )


def gradient_scale(optimizers: Iterable[Optimizer]) -> float:
    """By how much the gradients are too large: a fused optimizer divides by ``GradScaler``'s scale.

    ``GradScaler`` hands fused optimizers its scale as an attribute during the step; the others
    get gradients that it divided itself.

    Args:
        optimizers: Those whose step it is.
    """
    scales = (each.__dict__.get("grad_scale") for each in optimizers)
    return next((float(scale) for scale in scales if scale is not None), 1.0)


def gradient_sign(group: dict[str, Any]) -> float:
    """-1 where the optimizer goes up the gradient (``maximize=True``), else 1."""
    return -1.0 if group.get("maximize") else 1.0
