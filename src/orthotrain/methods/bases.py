"""What a method of your own derives from: the base walks the weights, you give ``change``.

``docs/write_a_method.md`` writes one in twenty lines.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from orthotrain.errors import ShapeError, StateError
from orthotrain.methods._optimizer import gradient_scale, gradient_sign
from orthotrain.methods.protocol import Bound, Method, Phase, Run
from orthotrain.methods.select import Pattern
from orthotrain.methods.targets import (
    Target,
    counted,
    dense_gradient,
    find_targets,
    finite_matrices,
    listed,
    of_this_step,
)


@dataclass(frozen=True)
class _MatrixMethod(Method):
    """What both bases share: which weights, and what is said of them."""

    params: Pattern | Sequence[Pattern]

    reads_gradient: ClassVar[bool]

    def find(self, run: Run) -> list[Target]:
        """The weights that ``params`` name in this run."""
        name = type(self).__name__
        return find_targets(name, run, self.params, reads_gradient=self.reads_gradient)

    def planned(self, targets: Sequence[Target]) -> str:
        """One line for the log of ``attach``: what happens at which step."""
        return f"{type(self).__name__} at every step: {listed(targets)}"

    def noted(self, targets: Sequence[Target]) -> str:
        """One line below the table of ``handle.summary()``."""
        return f"{type(self).__name__} on {counted(targets)}"


@dataclass(frozen=True)
class GradientMethod(_MatrixMethod):
    """Base of methods that change the gradient of weights before each step.

    A subclass is a frozen dataclass with a ``name``, its own settings (keyword-only) and
    :meth:`change`. It may set ``phase``: ``Phase.LOSS`` acts before the methods that replace
    gradients. A method that keeps state between steps overrides ``bind``, too.

    Args:
        params: Name patterns, modules or parameters, as in
            :func:`orthotrain.methods.select_parameters`.

    Raises:
        ConfigError: At ``attach``: ``params`` is empty or matches nothing; a parameter is no
            matrix, is sharded, or is not in the optimizer; the optimizer is LBFGS.
    """

    phase: ClassVar[Phase] = Phase.GRADIENT
    reads_gradient: ClassVar[bool] = True

    @abstractmethod
    def change(self, gradient: Tensor, target: Target) -> Tensor:
        """The gradient that the optimizer is to see.

        Args:
            gradient: ``(blocks, m, n)``: the gradient of ``target`` as matrices of outputs by
                inputs, one per group of a convolution and per packed projection. It points up
                the loss and carries no loss scale, whatever the optimizer does. It may hold NaN.
            target: The weight: ``.name``, ``.parameter`` and ``.layout``.

        Returns:
            A tensor of the same shape. Autograd is off. ``gradient`` is not to be written into.
        """

    def bind(self, run: Run) -> Bound:
        """Find the weights; see :class:`~orthotrain.methods.Method`."""
        return BoundGradientMethod(self, run)


@dataclass(frozen=True)
class WeightMethod(_MatrixMethod):
    """Base of methods that change the values of weights right after each step.

    A subclass is a frozen dataclass with a ``name``, its own settings (keyword-only) and
    :meth:`change`. A method that keeps state between steps overrides ``bind``, too.

    Args:
        params: Name patterns, modules or parameters, as in
            :func:`orthotrain.methods.select_parameters`.

    Raises:
        ConfigError: At ``attach``: ``params`` is empty or matches nothing, or a parameter is no
            matrix, is sharded, or is not in the optimizer.
        NonFiniteError: In a step, for a weight with NaN or infinity; names it.
    """

    phase: ClassVar[Phase] = Phase.UPDATE
    reads_gradient: ClassVar[bool] = False

    @abstractmethod
    def change(self, weight: Tensor, target: Target) -> Tensor:
        """The weight to go on with.

        Args:
            weight: ``(blocks, m, n)``, finite: the weight as matrices of outputs by inputs.
            target: Whose it is.

        Returns:
            A tensor of the same shape, rounded to the weight's dtype afterwards. Autograd is
            off. ``weight`` is not to be written into.
        """

    def bind(self, run: Run) -> Bound:
        """Find the weights; see :class:`~orthotrain.methods.Method`."""
        return BoundWeightMethod(self, run)


class GradientBound(Bound):
    """Base of bound methods that act on gradients: targets, and a check of the calls."""

    def __init__(self, name: str, run: Run, targets: Sequence[Target]) -> None:
        self._name = name
        self._run = run
        self._targets = targets
        self._armed = False

    def _gradients(self) -> dict[Target, Tensor]:
        """The gradients this step is taken with; notes that they were asked for."""
        self._armed = True
        targets = of_this_step(self._targets, self._run)
        found = ((target, dense_gradient(self._name, target)) for target in targets)
        return {target: gradient for target, gradient in found if gradient is not None}

    def acts_on(self) -> list[str]:
        """Name and sizes of each target."""
        return [str(target) for target in self._targets]

    def after_step(self) -> None:
        """Refuse a step whose gradients were not seen."""
        if not self._armed:
            raise StateError(
                f"{self._name} acts before optimizer.step(), and this step came without; with "
                "auto=False, call handle.before_step() right before every optimizer.step()"
            )
        self._armed = False


class _Tells(Bound):
    """Says of a method what the method says of itself."""

    _method: _MatrixMethod
    _targets: Sequence[Target]

    def plan(self) -> list[str]:
        """What the method says will happen."""
        return [self._method.planned(self._targets)]

    @torch.no_grad()
    def notes(self) -> list[str]:
        """What the method says happened."""
        return [self._method.noted(self._targets)]


class BoundGradientMethod(_Tells, GradientBound):
    """A :class:`GradientMethod` at work on one run."""

    def __init__(self, method: GradientMethod, run: Run) -> None:
        super().__init__(type(method).__name__, run, method.find(run))
        self._method: GradientMethod = method

    @torch.no_grad()
    def before_step(self) -> None:
        """Replace each gradient by what ``change`` makes of it."""
        groups, scale = self._run.groups(), gradient_scale(self._run.stepping)
        for target, gradient in self._gradients().items():
            unit = gradient_sign(groups[target.parameter]) * scale
            matrices = target.layout.matrices(gradient)
            changed = self._method.change(matrices if unit == 1 else matrices / unit, target)
            _require_shape(self._name, changed, matrices)
            gradient.copy_(target.layout.tensor(changed if unit == 1 else changed * unit))


class BoundWeightMethod(_Tells):
    """A :class:`WeightMethod` at work on one run."""

    def __init__(self, method: WeightMethod, run: Run) -> None:
        self._method: WeightMethod = method
        self._name = type(method).__name__
        self._run = run
        self._targets = method.find(run)

    def acts_on(self) -> list[str]:
        """Name and sizes of each target."""
        return [str(target) for target in self._targets]

    @torch.no_grad()
    def after_step(self) -> None:
        """Replace each weight by what ``change`` makes of it."""
        for target in of_this_step(self._targets, self._run):
            weight = finite_matrices(self._name, target)
            changed = self._method.change(weight, target)
            _require_shape(self._name, changed, weight)
            target.parameter.copy_(target.layout.tensor(changed))


def _require_shape(method: str, changed: Tensor, matrices: Tensor) -> None:
    if changed.shape != matrices.shape:
        raise ShapeError(
            f"{method}.change needs to return a tensor of the shape it was given, "
            f"{tuple(matrices.shape)}, got {tuple(changed.shape)}; keep blocks, m and n"
        )
