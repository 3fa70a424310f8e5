"""ReLoRA-like: frozen weights with low-rank updates, which are merged and begin anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.lab.experiments.branches.plan import Plan
from orthotrain.lab.experiments.rivals.config import RivalSettings
from orthotrain.lab.experiments.rivals.layers import linear_layers, rank_of
from orthotrain.lab.named import named
from orthotrain.lab.run.restore import may_rebuild, network_entry, rebuilds
from orthotrain.methods.protocol import Bound, Method, Phase, Run
from orthotrain.methods.summary import Row


class UpdatedLinear(nn.Module):
    """``base_layer(x) + x a^T b^T``: a linear layer with a low-rank update of its weight.

    Args:
        base_layer: ``(m, n)``.
        rank: Of the update; ``a`` is ``(rank, n)``, ``b`` is ``(m, rank)``, both zero.

    Attributes:
        on: Whether the update is added.
    """

    def __init__(self, base_layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer, self.on = base_layer, True
        m, n = base_layer.weight.shape
        self.a = nn.Parameter(base_layer.weight.new_zeros(rank, n))
        self.b = nn.Parameter(base_layer.weight.new_zeros(m, rank))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., n)`` to ``(..., m)``."""
        out: Tensor = self.base_layer(x)
        return out + F.linear(F.linear(x, self.a), self.b) if self.on else out

    def switch(self, on: bool) -> None:
        """Add the update, or leave it out."""
        self.on = on


@dataclass(frozen=True)
class Updated:
    """A layer with an update, whoever's class it is.

    Attributes:
        name: Of the layer.
        base_layer: With the frozen weight.
        a: ``(rank, n)``.
        b: ``(m, rank)``.
        switch: Adds the update or leaves it out.
    """

    name: str
    base_layer: nn.Linear
    a: nn.Parameter
    b: nn.Parameter
    switch: Callable[[bool], None]

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """Weight, ``a`` and ``b``."""
        weight: Any = self.base_layer.weight  # torch's stubs call it a Tensor
        return weight, self.a, self.b

    def row(self, *, on: bool) -> Row:
        """Its account: the update is stored beside the weight until it is merged."""
        weight, update = self.base_layer.weight.numel(), self.a.numel() + self.b.numel()
        return Row(
            self.name,
            tuple(self.base_layer.weight.shape),
            len(self.a) if on else None,
            update if on else weight,
            weight + update,
            weight,
            "factored" if on else "dense",
            buffers=0,
        )


@dataclass(frozen=True)
class LowRankUpdates(Method):
    """Trains weights, then low-rank updates of them that are merged and begin anew.

    Attributes:
        layers: With an update each, which is zero at first.
        delay_steps: Steps of the weights themselves.
        every_steps: Steps of an update before it is merged; None for a single one.
        seed: Of the updates.
    """

    phase: ClassVar[Phase] = Phase.UPDATE
    name: ClassVar[str] = "low_rank_updates"

    layers: Sequence[Updated]
    delay_steps: int
    every_steps: int | None
    seed: int

    def bind(self, run: Run) -> Bound:
        """Train the weights first.

        Raises:
            ConfigError: Several processes train the model, or no step is left for updates.
        """
        if run.processes.count > 1:
            raise ConfigError(
                f"{self.name}: {run.processes.count} processes train this model, and DDP does not "
                "follow what is frozen on the way; start it without torchrun"
            )
        if run.total_steps is not None and self.delay_steps >= run.total_steps:
            raise ConfigError(
                f"{self.name}: updates would begin at step {self.delay_steps} of "
                f"{run.total_steps}; need a smaller rivals.dense_fraction or "
                "rivals.adapt_fraction, or more steps"
            )
        return _Updates(self, run)


class _Updates(Bound):
    def __init__(self, settings: LowRankUpdates, run: Run) -> None:
        self._settings, self._run, self._on = settings, run, False
        self._train(updates=False)
        if not settings.delay_steps:
            self._begin(0)

    def after_step(self) -> None:
        settings, since = self._settings, self._run.step - self._settings.delay_steps
        if since == 0:
            self._begin(0)
        elif self._on and settings.every_steps and self._run.step != self._run.total_steps:
            number, left = divmod(since, settings.every_steps)
            if not left:
                self._begin(number)

    @torch.no_grad()
    def _begin(self, number: int) -> None:
        """Merge what was trained, if anything was, and begin with a zero update."""
        random = torch.Generator().manual_seed(self._settings.seed + number)
        for layer in self._settings.layers:
            weight, a, b = layer.parameters
            if self._on:
                weight.addmm_(b, a)
            # As nn.Linear draws its weight; b at zero makes the update zero.
            bound = 1 / math.sqrt(a.shape[1])
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=random))
            b.zero_()
            for parameter in (weight, a, b):
                self._run.optimizer_of(parameter).state.pop(parameter, None)
        self._train(updates=True)
        self._run.record(method=self._settings.name, event="begin", number=number)

    def _train(self, *, updates: bool) -> None:
        self._on = updates
        for layer in self._settings.layers:
            layer.switch(updates)
            for parameter in layer.parameters:
                parameter.requires_grad_(updates)
                parameter.grad = None
            layer.parameters[0].requires_grad_(not updates)

    def rows(self) -> list[Row]:
        return [layer.row(on=self._on) for layer in self._settings.layers]

    def state_dict(self) -> dict[str, Any]:
        return {"on": self._on}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._train(updates=bool(state["on"]))


def rhythm(step: int, *, delay_steps: int, every_steps: int | None, rewarm_steps: int) -> float:
    """Factor on the rate: it rises again after each beginning of an update."""
    since = step - delay_steps
    if since < 0 or not rewarm_steps:
        return 1.0
    return min(1.0, ((since % every_steps if every_steps else since) + 1) / rewarm_steps)


def updates_plan(
    method: LowRankUpdates,
    settings: RivalSettings,
    *,
    rebuild: Callable[..., nn.Module],
    total_steps: int,
) -> Plan:
    """The plan of updates that were put into a model.

    Args:
        method: That trains them.
        settings: By hand.
        rebuild: Builds the network of a checkpoint from ``base`` and ``rank_fraction``.
        total_steps: Of the run.

    Raises:
        ConfigError: The rate would rise until the next restart.
    """
    rewarm = round(settings.rewarm_fraction * total_steps)
    if method.every_steps is not None and rewarm >= method.every_steps:
        raise ConfigError(
            f"the rate would rise for {rewarm} of the {method.every_steps} steps between restarts "
            "and never stand at its peak; need a smaller rivals.rewarm_fraction, or fewer "
            "rivals.restarts"
        )

    def network(base: dict[str, Any]) -> Mapping[str, Any]:
        return network_entry(rebuild, {"base": base, "rank_fraction": settings.rank_fraction})

    return Plan(
        (method,),
        rhythm=partial(
            rhythm,
            delay_steps=method.delay_steps,
            every_steps=method.every_steps,
            rewarm_steps=rewarm,
        ),
        network=network,
    )


@rebuilds
def with_updates(*, base: Mapping[str, Any], rank_fraction: float) -> nn.Module:
    """The network of a checkpoint, with updates beside its weights."""
    return rebuilt(base, partial(put_updates, rank_fraction=rank_fraction))


def rebuilt(base: Mapping[str, Any], put: Callable[[nn.Module], Sequence[Updated]]) -> nn.Module:
    """The network that a checkpoint was begun with, with what was put into it.

    Raises:
        CheckpointError: It names a function that is no builder of networks.
    """
    build = named(base["build"])
    if not may_rebuild(build):
        raise CheckpointError(f"{base['build']} is not marked as a function that rebuilds networks")
    model: nn.Module = build(**base["settings"])
    for layer in put(model):
        layer.switch(True)
    return model


def put_updates(model: nn.Module, *, rank_fraction: float) -> list[Updated]:
    """Give every linear layer but the last an update of zero; the model is changed in place."""
    found = []
    for name, layer in linear_layers(model, rival="relora-like").items():
        updated = UpdatedLinear(layer, rank_of(layer, rank_fraction))
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, updated)
        found.append(Updated(name, layer, updated.a, updated.b, updated.switch))
    return found


def relora_like(model: nn.Module, settings: RivalSettings, *, total_steps: int, seed: int) -> Plan:
    """ReLoRA-like: low-rank updates with restarts after a dense warm-up.

    As ReLoRA (Lialin et al. 2023, arXiv:2307.05695), but that moments of an update begin at zero
    instead of being pruned.
    """
    delay = max(1, round(settings.dense_fraction * total_steps))
    method = LowRankUpdates(
        put_updates(model, rank_fraction=settings.rank_fraction),
        delay_steps=delay,
        every_steps=max(1, -(-(total_steps - delay) // (settings.restarts + 1))),
        seed=seed,
    )
    return updates_plan(method, settings, rebuild=with_updates, total_steps=total_steps)
