"""What NOG and OLR are held against: orthogonal penalty, spectral normalization, retraction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, assert_never, get_args

import torch
from torch import Tensor

from orthotrain.errors import ConfigError, NonFiniteError, StateError
from orthotrain.linalg import polar_factor, working_dtype
from orthotrain.methods._spectrum import spectrum
from orthotrain.methods._targets import (
    GradientBound,
    Target,
    counted,
    dense_gradient,
    find_targets,
    gradient_scale,
    groups_of,
    listed,
)
from orthotrain.methods.protocol import Bound, Method, Phase, Run
from orthotrain.methods.select import Pattern

Onto = Literal["orthonormal", "polar", "norm"]


@dataclass(frozen=True)
class OrthogonalPenalty(Method):
    r"""OL: train with ``weight * |W W^T - 1|_F^2`` added to the loss, on the smaller side of ``W``.

    Adds ``4 weight (W W^T - 1) W`` (for a tall ``W``: ``4 weight W (W^T W - 1)``) to the gradient
    before the step, and before NOG whatever the order they are named in; so the loss that the
    loop prints stays that of the task. Matrices are read as by
    :class:`NearestOrthogonalGradient`, the penalty is summed over those of a weight. A parameter
    without a gradient is left alone.

    Args:
        params: Name patterns, modules or parameters, as in
            :func:`orthotrain.methods.select_parameters`.
        weight: Factor of the penalty, positive and finite.

    Raises:
        ConfigError: ``weight`` is not positive and finite, or ``params`` is empty. At ``attach``:
            as :class:`NearestOrthogonalGradient`.
        NonFiniteError: In a step, for a weight with NaN or infinity; names it.

    Note:
        The penalty is added after everything that the loop does to the gradient, so clipping does
        not reach it.

    Source:
        The "orthogonal loss" that Song, Sebe and Wang (2022), arXiv:2207.02119, compare with.
    """

    params: Pattern | Sequence[Pattern]
    _: KW_ONLY
    weight: float

    phase: ClassVar[Phase] = Phase.LOSS
    name: ClassVar[str] = "orthogonal_penalty"

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(
                f"OrthogonalPenalty needs a positive, finite weight, got {self.weight}; "
                "leave the method out for none"
            )

    def bind(self, run: Run) -> Bound:
        """Find the weights; see :class:`~orthotrain.methods.Method`."""
        targets = find_targets(type(self).__name__, run, self.params, reads_gradient=True)
        return _BoundPenalty(self, run, targets)


class _BoundPenalty(GradientBound):
    def __init__(self, method: OrthogonalPenalty, run: Run, targets: Sequence[Target]) -> None:
        super().__init__(type(method).__name__, run, targets)
        self._factor = method.weight

    @torch.no_grad()
    def before_step(self) -> None:
        self._arm()
        groups = groups_of(self._run.optimizer)
        scale = gradient_scale(self._run.optimizer)
        for target in self._targets:
            gradient = dense_gradient(self._name, target)
            if gradient is None:
                continue
            sign = -1.0 if groups[target.parameter].get("maximize") else 1.0
            w = _finite_matrices("OrthogonalPenalty", target)
            defect = _defect(w)
            slope = w @ defect if w.shape[-2] >= w.shape[-1] else defect @ w
            gradient.add_(target.layout.tensor(slope), alpha=sign * scale * 4 * self._factor)

    def after_step(self) -> None:
        self._disarm()

    def plan(self) -> list[str]:
        return [f"orthogonal penalty of weight {self._factor:g} on {listed(self._targets)}"]

    @torch.no_grad()
    def notes(self) -> list[str]:
        sizes = [
            float(_defect(t.layout.matrices(t.parameter.detach())).norm()) for t in self._targets
        ]
        return [
            f"orthogonal penalty of weight {self._factor:g} on {counted(self._targets)}: "
            f"|W W^T - 1| is {max(sizes):.3g} at most"
        ]


def _defect(w: Tensor) -> Tensor:
    """``W^T W - 1`` or ``W W^T - 1``, whichever is smaller."""
    gram = w.mT @ w if w.shape[-2] >= w.shape[-1] else w @ w.mT
    return gram - torch.eye(gram.shape[-1], dtype=w.dtype, device=w.device)


@dataclass(frozen=True)
class SpectralNormalization(Method):
    """SN: after every step, divide each matrix of a weight by its largest singular value.

    The singular value is computed anew at each step, so there is no state and no power iteration
    that lags behind. Matrices are read as by :class:`NearestOrthogonalGradient`; each one of a
    grouped convolution gets the spectral norm one. A zero matrix stays zero. The weight itself is
    changed, unlike with torch's parametrization, whose gradient passes through the division.

    Args:
        params: Name patterns, modules or parameters, as in
            :func:`orthotrain.methods.select_parameters`.

    Raises:
        ConfigError: ``params`` is empty. At ``attach``: a pattern matches nothing, or a
            parameter is no matrix, is sharded, or is not in the optimizer.
        NonFiniteError: In a step, for a weight with NaN or infinity; names it.

    Source:
        Miyato et al. (2018), arXiv:1802.05957, who divide inside the forward pass; as a baseline
        in Song, Sebe and Wang (2022), arXiv:2207.02119.
    """

    params: Pattern | Sequence[Pattern]

    phase: ClassVar[Phase] = Phase.UPDATE
    name: ClassVar[str] = "spectral_normalization"

    def bind(self, run: Run) -> Bound:
        """Find the weights; see :class:`~orthotrain.methods.Method`."""
        targets = find_targets(type(self).__name__, run, self.params, reads_gradient=False)
        return _BoundNormalization(targets)


class _BoundNormalization(Bound):
    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets

    @torch.no_grad()
    def after_step(self) -> None:
        for target in self._targets:
            w = _finite_matrices("SpectralNormalization", target)
            largest = spectrum(w)[:, :1, None]
            unit = w.to(largest.dtype) / torch.where(largest > 0, largest, 1.0)
            target.parameter.copy_(target.layout.tensor(unit))

    def plan(self) -> list[str]:
        return [f"spectral norm one after every step for {listed(self._targets)}"]

    def notes(self) -> list[str]:
        return [f"spectral norm one held for {listed(self._targets)}"]


@dataclass(frozen=True)
class Retraction(Method):
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

    params: Pattern | Sequence[Pattern]
    _: KW_ONLY
    onto: Onto = "orthonormal"

    phase: ClassVar[Phase] = Phase.UPDATE
    name: ClassVar[str] = "retraction"

    def __post_init__(self) -> None:
        if self.onto not in get_args(Onto):
            raise ConfigError(
                f"Retraction needs onto to be one of {', '.join(get_args(Onto))}, got {self.onto!r}"
            )

    def bind(self, run: Run) -> Bound:
        """Find the weights; see :class:`~orthotrain.methods.Method`."""
        targets = find_targets(type(self).__name__, run, self.params, reads_gradient=False)
        match self.onto:
            case "orthonormal":
                return _BoundOrthonormal(targets, scaled=True)
            case "polar":
                return _BoundOrthonormal(targets, scaled=False)
            case "norm":
                return _BoundNorm(run, targets)
            case _:
                assert_never(self.onto)


class _BoundOrthonormal(Bound):
    def __init__(self, targets: Sequence[Target], *, scaled: bool) -> None:
        self._targets = targets
        self._scaled = scaled
        self._what = "multiple of an orthonormal matrix" if scaled else "orthonormal matrix"

    @torch.no_grad()
    def after_step(self) -> None:
        for target in self._targets:
            w = _finite_matrices("Retraction", target).to(working_dtype(target.parameter))
            q = polar_factor(w, complete=True)
            if self._scaled:
                # <W, Q> sums the singular values.
                q = (w * q).sum(dim=(-2, -1), keepdim=True) / min(w.shape[-2:]) * q
            target.parameter.copy_(target.layout.tensor(q))

    def plan(self) -> list[str]:
        return [f"{self._what} after every step: {listed(self._targets)}"]

    def notes(self) -> list[str]:
        return [f"{self._what} held for {listed(self._targets)}"]


class _BoundNorm(Bound):
    def __init__(self, run: Run, targets: Sequence[Target]) -> None:
        self._run = run
        self._targets = targets
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
        for target in self._targets:
            _finite_matrices("Retraction", target)
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


def _finite_matrices(method: str, target: Target) -> Tensor:
    weight = target.parameter.detach()
    if not bool(weight.isfinite().all()):
        raise NonFiniteError(
            f"{method}: the weight of {target.name} holds NaN or infinity; find the step that made "
            "them, or train with a lower learning rate"
        )
    return target.layout.matrices(weight)
