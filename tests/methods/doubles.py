"""Methods that only write down what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.methods import Bound, Method, Phase, Row, Run


class DiaryBound(Bound):
    def __init__(self, method: Diary, run: Run) -> None:
        self.method = method
        self.run = run
        self.losses: list[tuple[int, float]] = []
        self.tracked: list[nn.Module] = []
        self.detached = 0

    def _write(self, event: str) -> None:
        self.method.diary.append((self.method.label, event, self.run.step))

    def before_step(self) -> None:
        self._write("before")

    def after_step(self) -> None:
        self._write("after")
        self.run.record(method="diary", label=self.method.label)

    def observe(self, loss: float, *, step: int) -> None:
        self.losses.append((step, loss))

    def after_load(self) -> None:
        self._write("loaded")

    def rows(self) -> list[Row]:
        return [Row("0", (4, 3), 2, 4, 18, 12, "factored")]

    def notes(self) -> list[str]:
        return [f"note of {self.method.label}"]

    def plan(self) -> list[str]:
        return [f"plan of {self.method.label}"]

    def state_dict(self) -> dict[str, Any]:
        return {"losses": [list(pair) for pair in self.losses], "t": torch.ones(2)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.losses = [tuple(pair) for pair in state["losses"]]

    def track(self, model: nn.Module) -> None:
        self.tracked.append(model)

    def detach(self) -> None:
        self.detached += 1


@dataclass(frozen=True)
class Diary(Method):
    """Writes ``(label, event, step)`` into ``diary``; keeps its bound half in ``bound``."""

    label: str = "diary"
    diary: list = field(default_factory=list)
    bound: list = field(default_factory=list)
    phase: ClassVar[Phase] = Phase.WATCH
    name: ClassVar[str] = "diary"

    def bind(self, run: Run) -> Bound:
        self.bound.append(DiaryBound(self, run))
        return self.bound[-1]


@dataclass(frozen=True)
class EarlyDiary(Diary):
    phase: ClassVar[Phase] = Phase.GRADIENT


@dataclass(frozen=True)
class Idle(Method):
    """Overrides nothing at all."""

    phase: ClassVar[Phase] = Phase.WATCH
    name: ClassVar[str] = "idle"

    def bind(self, run: Run) -> Bound:
        return Bound()


@dataclass(frozen=True)
class Unfit(Method):
    """Finds at ``bind`` that it cannot work."""

    words: str = "does not fit"

    phase: ClassVar[Phase] = Phase.WATCH
    name: ClassVar[str] = "unfit"

    def bind(self, run: Run) -> Bound:
        raise ConfigError(self.words)


def small_model() -> nn.Sequential:
    """A Linear(3, 4), a ReLU and a Linear(4, 2), the same weights at every call."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def backward(model: nn.Module, *, scale: float = 1.0) -> torch.Tensor:
    """One forward and backward pass on a fixed batch."""
    batch = torch.linspace(-1, 1, 15).reshape(5, 3)
    loss = (model(batch) ** 2).mean() * scale
    loss.backward()
    return loss


def hook_counts(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """How many hooks of each kind model, parameters and optimizer hold."""
    counts: dict[str, int] = {}
    for owner in (*model.modules(), *model.parameters(), optimizer):
        for key, value in (
            vars(owner).items()
            if not isinstance(owner, torch.Tensor)
            else [
                (name, getattr(owner, name, None))
                for name in ("_post_accumulate_grad_hooks", "_backward_hooks")
            ]
        ):
            if "hooks" in key and value:
                counts[key] = counts.get(key, 0) + len(value)
    return counts


def same(a: object, b: object) -> bool:
    """Whether two states are equal bit for bit, tensors in containers too."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
