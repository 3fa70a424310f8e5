"""``OptimalLearningRate``: the step length that keeps a weight near where OLR wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from orthotrain._checks import require_share, require_steps
from orthotrain._doors import checked
from orthotrain.errors import StateError
from orthotrain.methods._optimizer import (
    gradient_scale,
    gradient_sign,
    learning_rate,
    require_learning_rate,
)
from orthotrain.methods.bases import GradientBound
from orthotrain.methods.optimal_lr_formulas import (
    cosine,
    inner_products,
    matrix_optimum,
    quartic_of,
    vector_optimum,
    wide,
)
from orthotrain.methods.protocol import Bound, Method, Phase, Run
from orthotrain.methods.select import Pattern
from orthotrain.methods.targets import Target, counted, find_targets, listed, owners_of

Aim = Literal["vector", "matrix"]
Direction = Literal["gradient", "update"]

_NAME = "optimal_learning_rate"


@checked
@dataclass(frozen=True)
class OptimalLearningRate(Method):
    r"""OLR: shorten the executed step of a weight to its optimal learning rate.

    Where ``0 < eta* < lr`` (the learning rate of the parameter's group), the update that the
    optimizer executed on that tensor is scaled by ``eta* / lr``, at every step, for that tensor
    alone; elsewhere it stays as it is. That equals a step with learning rate ``eta*`` wherever
    the update is proportional to it (SGD with momentum, Adam, AdamW with its decoupled decay).
    No parameter group is added or split, and no learning rate is changed.

    Args:
        params: Name patterns, modules or parameters, as in
            :func:`orthotrain.methods.select_parameters`.
        target: ``"vector"`` is the published :func:`optimal_lr`: it steers the norm of the
            weight, not its orthogonality. ``"matrix"`` is :func:`optimal_lr_matrix` over
            ``[floor * lr, lr]``: the step that leaves the weight's matrices closest to
            orthonormal.
        direction: What is ``l``. ``"gradient"``: the gradient, after NOG where that acts on it.
            ``"update"``: the executed update over ``-lr``, with momentum and weight decay.
        floor: In ``[0, 1)``. No step is shortened to less than ``floor * lr``. With ``"matrix"``
            and 0, a weight that is orthonormal stops training.
        record_every: Optimizer steps between records, at least 1; the first comes after so many
            steps. They hold ``eta`` (``None`` where it was not used), ``optimum`` (``eta*``
            itself, ``None`` where there is none), ``lr``, ``used``, ``cosine`` of ``w`` and
            ``l``, and ``used_share``: in which share of all steps so far, of all weights and
            recorded or not, it was used.

    Raises:
        ConfigError: ``params`` empty, an unknown choice, ``floor`` outside ``[0, 1)``, or
            ``record_every`` below 1. At ``attach``: a pattern matches nothing; a parameter is
            no matrix, is sharded, or is not in the optimizer; the optimizer has no learning rate
            or computes gradients inside its step (LBFGS).

    Note:
        Keeps a copy of each weight from before the step to after it, and waits once per step for
        an accelerator. A gradient with NaN has no optimum, and the step stays as it is. With
        ``auto=False``, call ``handle.before_step()`` once gradients are unscaled. Under DDP
        gradients are averaged before the step, so all processes act alike.

    Source:
        Song, Sebe and Wang (2022), arXiv:2207.02119. ``"matrix"``, ``"update"`` and ``floor`` are
        ours.
    """

    params: Pattern | Sequence[Pattern]
    _: KW_ONLY
    target: Aim = "vector"
    direction: Direction = "gradient"
    floor: float = 0.0
    record_every: int = 100

    phase: ClassVar[Phase] = Phase.LEARNING_RATE
    name: ClassVar[str] = _NAME

    def __post_init__(self) -> None:
        require_share("OptimalLearningRate", "floor", self.floor, zero=True)
        require_steps("OptimalLearningRate", "record_every", self.record_every)

    def bind(self, run: Run) -> Bound:
        """Find the weights; see :class:`~orthotrain.methods.Method`."""
        targets = find_targets(type(self).__name__, run, self.params, reads_gradient=True)
        require_learning_rate(type(self).__name__, owners_of(targets, run))
        return _BoundOptimal(self, run, targets)


class _Direction(NamedTuple):
    """Sums over a weight and its direction, still on their device."""

    products: Tensor
    quartic: Tensor | None


class _BoundOptimal(GradientBound):
    def __init__(self, method: OptimalLearningRate, run: Run, targets: Sequence[Target]) -> None:
        super().__init__(type(method).__name__, run, targets)
        self._method = method
        self._before: dict[Target, Tensor] = {}
        self._lengths: dict[Target, float] = {}
        self._seen: dict[Target, _Direction] = {}
        self._steps = 0
        self._used = 0
        self._share = 0.0

    @torch.no_grad()
    def before_step(self) -> None:
        groups = self._run.groups()
        scale = gradient_scale(self._run.stepping)
        self._before, self._lengths, self._seen = {}, {}, {}
        for target, gradient in self._gradients().items():
            self._before[target] = target.parameter.detach().clone()
            group = groups[target.parameter]
            # The step is measured by the learning rate it was taken with; a scheduler steps later.
            self._lengths[target] = learning_rate(group)
            if self._method.direction == "gradient":
                unit = gradient_sign(group) * scale
                self._seen[target] = self._look(target, gradient, unit=unit)

    def _look(self, target: Target, direction: Tensor, *, unit: float) -> _Direction:
        weight, layout = self._before[target], target.layout
        direction = wide(direction) / unit
        quartic = None
        if self._method.target == "matrix":
            quartic = quartic_of(layout.matrices(weight), layout.matrices(direction))
        return _Direction(inner_products(weight, direction), quartic)

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        moved = {target: lr for target, lr in self._lengths.items() if lr != 0}
        if self._method.direction == "update":
            for target, lr in moved.items():
                delta = wide(target.parameter) - wide(self._before[target])
                self._seen[target] = self._look(target, delta, unit=-lr)
        products = _read({target: self._seen[target].products for target in moved})
        quartics = _read(
            {t: seen.quartic for t in moved if (seen := self._seen[t]).quartic is not None}
        )
        due = self._run.step % self._method.record_every == 0
        for target, lr in moved.items():
            optimum = self._optimum(products[target], quartics.get(target), lr)
            eta = None
            if optimum is not None and optimum < lr:
                eta = max(optimum, self._method.floor * lr)
                before, weight = self._before[target], target.parameter
                weight.copy_(torch.lerp(before, weight.detach(), eta / lr))
            self._steps += 1
            self._used += eta is not None
            self._share += 0.0 if eta is None else eta / lr
            if due:
                self._run.record(
                    method=_NAME,
                    layer=target.name,
                    eta=eta,
                    optimum=optimum,
                    lr=lr,
                    used=eta is not None,
                    cosine=cosine(*products[target]),
                    used_share=self._used / self._steps,
                )
        self._before, self._lengths, self._seen = {}, {}, {}

    def _optimum(
        self, products: Sequence[float], quartic: Sequence[float] | None, lr: float
    ) -> float | None:
        match self._method.target:
            case "vector":
                ww, lw, ll = products
                return vector_optimum(ww, lw, ll)
            case "matrix":
                assert quartic is not None
                return matrix_optimum(quartic, self._method.floor * lr, lr)
            case _:
                assert_never(self._method.target)

    def plan(self) -> list[str]:
        line = (
            f"optimal learning rate of {counted(self._targets)} at every step: "
            f"{listed(self._targets)}"
        )
        if self._method.target == "matrix" and self._method.floor == 0:
            line += "; without a floor, an orthonormal weight stops training"
        return [line]

    def notes(self) -> list[str]:
        line = f"optimal learning rate of {counted(self._targets)}"
        if self._steps:
            line += f": used in {self._used / self._steps:.1%} of {self._steps:,} steps"
        if self._used:
            line += f", there {self._share / self._used:.3g} of the group's on average"
        return [line]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "used": self._used, "share": self._share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"steps", "used", "share"}:
            raise StateError(
                f"{self._name}: need the entries 'steps', 'used' and 'share' in its state, got "
                f"{sorted(state)}"
            )
        self._steps, self._used = int(state["steps"]), int(state["used"])
        self._share = float(state["share"])


def _read(tensors: Mapping[Target, Tensor]) -> dict[Target, list[float]]:
    """Values of small tensors of one length, with one wait for an accelerator."""
    if not tensors:
        return {}
    home = next(iter(tensors.values())).device
    values = torch.stack([tensor.to(home) for tensor in tensors.values()]).tolist()
    return dict(zip(tensors, values, strict=True))
