"""``SpectralNormalization``: every matrix of a weight over its largest singular value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from orthotrain._doors import checked
from orthotrain.linalg.decompose import singular_values_by_gram
from orthotrain.methods.bases import WeightMethod
from orthotrain.methods.targets import Target, listed


@checked
@dataclass(frozen=True)
class SpectralNormalization(WeightMethod):
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

    name: ClassVar[str] = "spectral_normalization"

    def change(self, weight: Tensor, target: Target) -> Tensor:
        """The weight with spectral norm one."""
        largest = singular_values_by_gram(weight)[:, :1, None]
        return weight.to(largest.dtype) / torch.where(largest > 0, largest, 1.0)

    def planned(self, targets: Sequence[Target]) -> str:
        """One line for the log of ``attach``."""
        return f"spectral norm one after every step for {listed(targets)}"

    def noted(self, targets: Sequence[Target]) -> str:
        """One line below the table of ``handle.summary()``."""
        return f"spectral norm one held for {listed(targets)}"
