"""``Retraction``: a weight taken back to where it should lie, after every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from orthotrain._doors import checked
from orthotrain.errors import ConfigError, StateError
from orthotrain.linalg import polar_factor, working_dtype
from orthotrain.methods.bases import BoundWeightMethod, WeightMethod
from orthotrain.methods.protocol import Bound, Run
from orthotrain.methods.targets import Target, finite_matrices, listed, of_this_step

Onto = Literal["orthonormal", "polar", "norm"]


@checked
@dataclass(frozen=True)
class Retraction(WeightMethod):
    """After every step, take a weight back to where it should lie.

    Matrices are read as by :class:`NearestOrthogonalGradient`. The optimizer's momentum is not
    changed.

    Args:
        params: Name patterns, modules or parameters, as in
            :func:`orthotrain.methods.select_parameters`.
        onto: ``"orthonormal"``: the nearest multiple of a matrix with orthonormal rows (columns,
            if tall), that is the polar factor times the mean singular value, each matrix for
            itself; directions that are null get the same length in an arbitrary direction.
            ``"polar"``: the polar factor itself, every singular value one, as on the Stiefel
            manifold; for a layer that has a scale of its own, such as ``EigenSubspace``.
            ``"norm"``: the whole weight is scaled to the Frobenius norm it had at ``attach``
            (or at a ``load_state_dict`` of the model before the first step). That norm is part
            of ``handle.state_dict()``.

    Raises:
        ConfigError: An unknown ``onto``, or ``params`` is empty. At ``attach``: a pattern matches
            nothing, a parameter is no matrix, is sharded, or is not in the optimizer; with
            ``"norm"``, a weight that is zero.
        NonFiniteError: In a step, for a weight with NaN or infinity; names it.

    Source:
        The polar retraction of optimization on the Stiefel manifold, Absil, Mahony and Sepulchre
        (2008). The fixed norm is our control for what NOG does as a change of learning rate.
    """

    _: KW_ONLY
    onto: Onto = "orthonormal"

    name: ClassVar[str] = "retraction"

    def bind(self, run: Run) -> Bound:
        """Find the weights; see :class:`~orthotrain.methods.Method`."""
        return _BoundNorm(self, run) if self.onto == "norm" else super().bind(run)

    def change(self, weight: Tensor, target: Target) -> Tensor:
        """The weight on the set that ``onto`` names, for those that need no state."""
        w = weight.to(working_dtype(weight))
        q = polar_factor(w, complete=True)
        if self.onto == "polar":
            return q
        # <W, Q> sums the singular values.
        return (w * q).sum(dim=(-2, -1), keepdim=True) / min(w.shape[-2:]) * q

    def planned(self, targets: Sequence[Target]) -> str:
        """One line for the log of ``attach``."""
        return f"{self._what} after every step: {listed(targets)}"

    def noted(self, targets: Sequence[Target]) -> str:
        """One line below the table of ``handle.summary()``."""
        return f"{self._what} held for {listed(targets)}"

    @property
    def _what(self) -> str:
        return "orthonormal matrix" if self.onto == "polar" else "multiple of an orthonormal matrix"


class _BoundNorm(BoundWeightMethod):
    """Holds the norms it found, which are part of the handle's state."""

    def __init__(self, method: Retraction, run: Run) -> None:
        super().__init__(method, run)
        self._norms: dict[str, float] = {}
        self._take_norms()

    def _take_norms(self) -> None:
        norms = {target.name: _norm(target) for target in self._targets}
        zero = [name for name, norm in norms.items() if not 0 < norm < math.inf]
        if zero:
            raise ConfigError(
                f"Retraction: the weight of {', '.join(zero)} is zero or not finite, and has no "
                "norm to be held; leave it out, or attach once it has values"
            )
        self._norms = norms

    def after_load(self) -> None:
        # Later on, the norm to hold is in the state of the handle.
        if self._run.step == 0:
            self._take_norms()

    @torch.no_grad()
    def after_step(self) -> None:
        for target in of_this_step(self._targets, self._run):
            finite_matrices(self._name, target)
            norm = _norm(target)
            if norm > 0:
                target.parameter.mul_(self._norms[target.name] / norm)

    def plan(self) -> list[str]:
        return [f"norm as at the start after every step for {listed(self._targets)}"]

    def notes(self) -> list[str]:
        held = ", ".join(f"{name} at {norm:.4g}" for name, norm in self._norms.items())
        return [f"Frobenius norm held for {held}"]

    def state_dict(self) -> dict[str, Any]:
        return {"norms": dict(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        norms = state.get("norms")
        if not isinstance(norms, Mapping) or set(norms) != set(self._norms):
            raise StateError(
                f"Retraction: need the norms of {sorted(self._norms)} in its state, got "
                f"{sorted(norms) if isinstance(norms, Mapping) else sorted(state)}"
            )
        self._norms = {name: float(norm) for name, norm in norms.items()}


def _norm(target: Target) -> float:
    weight = target.parameter.detach()
    return float(torch.linalg.vector_norm(weight, dtype=working_dtype(weight)))
