"""How weights were looked at before Gram matrices: the slow twin of ``watching.py``."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from orthotrain.linalg import (
    basis_stability_from_polar,
    condition_readings,
    mixing_similarity,
    polar_factor,
)
from orthotrain.linalg.rank import rounding_rtol


def matrices_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the linear layers."""
    return {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)}


class BasisLooks:
    """An SVD and a QR decomposition of a float64 copy; the old looks are kept until all is new."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = matrices_of(model)
        self._last = self._look()

    def __call__(self) -> None:
        """One look, compared with the last."""
        now = self._look()
        for name, (q, r) in now.items():
            before = self._last[name]
            basis_stability_from_polar(before[0], q).item()
            mixing_similarity(before[1], r).item()
        self._last = now

    @torch.no_grad()
    def _look(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: self._at(weight.detach()) for name, weight in self._weights.items()}

    @staticmethod
    def _at(weight: Tensor) -> tuple[Tensor, Tensor]:
        work = weight.double()
        tall = work if work.shape[-2] >= work.shape[-1] else work.mT
        q = polar_factor(work, rtol=rounding_rtol(weight)).float()
        return q, torch.linalg.qr(tall, mode="r").R.float()


class Conditions:
    """Two SVDs without vectors of weight, gradient and update; all weights copied for the last."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = list(matrices_of(model).values())
        self._before: list[Tensor] = []

    def before_step(self) -> None:
        """Copies, and the gradients."""
        self._before = [w.detach().clone() for w in self._weights]
        _read(w.grad.detach() / 1.0 for w in self._weights if w.grad is not None)

    def after_step(self) -> None:
        """Updates and weights."""
        pairs = zip(self._weights, self._before, strict=True)
        _read(w.detach().double() - old.double() for w, old in pairs)
        _read(w.detach() for w in self._weights)
        self._before = []


def _read(matrices: Iterable[Tensor]) -> None:
    for matrix in matrices:
        condition_readings(matrix, rtol=1e-4)
