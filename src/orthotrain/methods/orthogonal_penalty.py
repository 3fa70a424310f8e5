"""``OrthogonalPenalty``: the orthogonal loss, added to the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from orthotrain._checks import require_number
from orthotrain._doors import checked
from orthotrain.linalg.orthonormality import gram_deviation, with_fewer_rows
from orthotrain.methods.bases import GradientMethod
from orthotrain.methods.protocol import Phase
from orthotrain.methods.targets import Target, counted, finite_matrices, listed


@checked
@dataclass(frozen=True)
class OrthogonalPenalty(GradientMethod):
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

    _: KW_ONLY
    weight: float

    phase: ClassVar[Phase] = Phase.LOSS
    name: ClassVar[str] = "orthogonal_penalty"

    def __post_init__(self) -> None:
        require_number("OrthogonalPenalty", "weight", self.weight, above=0)

    def change(self, gradient: Tensor, target: Target) -> Tensor:
        """The gradient of the loss with the penalty in it."""
        w = finite_matrices("OrthogonalPenalty", target)
        deviation = gram_deviation(with_fewer_rows(w))
        slope = w @ deviation if w.shape[-2] >= w.shape[-1] else deviation @ w
        return gradient.add(slope, alpha=4 * self.weight)

    def planned(self, targets: Sequence[Target]) -> str:
        """One line for the log of ``attach``."""
        return f"orthogonal penalty of weight {self.weight:g} on {listed(targets)}"

    def noted(self, targets: Sequence[Target]) -> str:
        """One line below the table of ``handle.summary()``."""
        weights = (target.layout.matrices(target.parameter.detach()) for target in targets)
        most = max(float(gram_deviation(with_fewer_rows(w)).norm()) for w in weights)
        return (
            f"orthogonal penalty of weight {self.weight:g} on {counted(targets)}: "
            f"|W W^T - 1| is {most:.3g} at most"
        )
