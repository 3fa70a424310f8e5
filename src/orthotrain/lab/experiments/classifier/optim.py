"""Optimizers with their schedules, which step once per optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from orthotrain.lab.experiments.classifier.config import SgdConfig
from orthotrain.lab.run.schedule import step_decay, warmup_cosine


class AdamWSettings(Protocol):
    """What AdamW and its schedule need; see :class:`OptimConfig`."""

    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def min_lr(self) -> float: ...  # noqa: D102
    @property
    def warmup_fraction(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102


def adamw(
    model: nn.Module,
    config: AdamWSettings,
    *,
    total_steps: int,
    betas: tuple[float, float] = (0.9, 0.999),
    kind: Callable[..., Optimizer] = AdamW,
    rhythm: Callable[[int], float] | None = None,
) -> tuple[Optimizer, LambdaLR]:
    """AdamW that decays matrices only; linear warm-up, then a cosine. A rate of zero stays.

    Args:
        model: What is trained.
        config: Rates, warm-up and decay.
        total_steps: Optimizer steps of the training.
        betas: Decay of the first and second moment.
        kind: Another optimizer that takes the same.
        rhythm: A factor on the rate after so many steps.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups: Iterable[dict[str, object]] = (
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    )
    optimizer = kind(groups, lr=config.lr, betas=betas)
    rule = partial(
        warmup_cosine,
        total_steps=total_steps,
        warmup_steps=int(config.warmup_fraction * total_steps),
        final=config.min_lr / config.lr if config.lr else 0.0,
    )
    if rhythm is None:
        return optimizer, LambdaLR(optimizer, rule)
    return optimizer, LambdaLR(optimizer, lambda step: rule(step) * rhythm(step))


def sgd(model: nn.Module, config: SgdConfig, *, total_steps: int) -> tuple[SGD, LambdaLR]:
    """SGD that decays everything, as published; ``head`` has a learning rate of its own."""
    head = {id(p) for p in model.get_submodule("head").parameters()}
    # Decay would turn an orthogonal weight for no reason: its norm is fixed.
    reflections = {id(p) for name, p in model.named_parameters() if ".parametrizations." in name}
    parameters = list(model.parameters())
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if id(p) not in head | reflections]},
        {
            "params": [p for p in parameters if id(p) in head],
            "lr": config.lr * config.head_lr_factor,
        },
    ]
    if reflections:
        orthogonal = [p for p in parameters if id(p) in reflections]
        groups.append({"params": orthogonal, "weight_decay": 0.0})
    optimizer = SGD(
        groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    rule = partial(
        step_decay, total_steps=total_steps, decay_at=config.decay_at, factor=config.decay_factor
    )
    return optimizer, LambdaLR(optimizer, rule)
