"""GaLore-like: AdamW on gradients that are projected to a low rank; weights stay dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.lab.experiments.branches.plan import Plan
from orthotrain.lab.experiments.rivals.config import RivalSettings
from orthotrain.lab.experiments.rivals.layers import linear_layers, rank_of


class ProjectedAdamW(Optimizer):
    """AdamW whose moments of some matrices live in a subspace of their gradients.

    For a matrix ``(m, n)`` with ``m <= n`` the basis ``p`` holds the ``k`` leading left singular
    vectors of its gradient, renewed every ``refresh_steps`` steps. Moments are those of
    ``p^T g``, ``(k, n)``, and the step is ``p`` times AdamW's step there. A taller matrix is
    projected from the right. Moments are kept when the basis is renewed. All other parameters
    have AdamW.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: Decay of the first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay of the full weight.
        ranks: Rank of each projected matrix.
        refresh_steps: Steps between new bases.

    Raises:
        ConfigError: A projected parameter that is no matrix, or a rank outside of it.
        NonFiniteError: At a step that renews a basis: the gradient is not finite.

    Source:
        Zhao et al. (2024), arXiv:2403.03507, with its factor on the step at 1: the learning rate
        is tuned instead.
    """

    def __init__(  # noqa: PLR0913 - those of AdamW, and two
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ranks: Mapping[Tensor, int],
        refresh_steps: int,
    ) -> None:
        for parameter, rank in ranks.items():
            shape = tuple(parameter.shape)
            if parameter.ndim != 2 or not 1 <= rank <= min(shape):
                raise ConfigError(
                    f"ProjectedAdamW: rank {rank} of a parameter of shape {shape}; need a matrix "
                    "and a rank of 1 to its smaller side. Leave others out of ranks"
                )
        self._ranks, self._refresh_steps = dict(ranks), refresh_steps
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, grad: Tensor, group: Mapping[str, Any]) -> None:
        state, rank = self.state[parameter], self._ranks.get(parameter)
        wide = parameter.ndim == 2 and parameter.shape[0] <= parameter.shape[1]
        taken = state.get("step", 0)
        if rank is not None:
            if taken % self._refresh_steps == 0:
                if not grad.isfinite().all():
                    raise NonFiniteError(
                        f"galore-like: a gradient of shape {tuple(grad.shape)} is not finite where "
                        "its basis is renewed; need a lower learning rate, or gradients clipped"
                    )
                state["basis"] = leading_directions(grad, rank)
            basis = state["basis"]
            grad = basis.mT @ grad if wide else grad @ basis
        if not taken:
            state["mean"], state["square"] = torch.zeros_like(grad), torch.zeros_like(grad)
        state["step"] = taken = taken + 1
        first, second = group["betas"]
        mean = state["mean"].lerp_(grad, 1 - first)
        square = state["square"].mul_(second).addcmul_(grad, grad, value=1 - second)
        root = square.sqrt().div_(math.sqrt(1 - second**taken)).add_(group["eps"])
        step = mean / root
        if rank is not None:
            step = basis @ step if wide else step @ basis.mT
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step, alpha=-group["lr"] / (1 - first**taken))


def leading_directions(grad: Tensor, rank: int) -> Tensor:
    """The leading singular vectors of the smaller side, ``(side, rank)``.

    The largest entry of each is positive: moments are kept when a basis is renewed, so its signs
    must not depend on the driver.
    """
    u, _, vh = torch.linalg.svd(grad, full_matrices=False)
    vectors = u[:, :rank] if grad.shape[0] <= grad.shape[1] else vh[:rank].mT
    largest = vectors.abs().argmax(0, keepdim=True)
    signed: Tensor = vectors * vectors.gather(0, largest).sign()
    return signed


def galore_like(model: nn.Module, settings: RivalSettings, *, total_steps: int, seed: int) -> Plan:
    """GaLore-like: the gradient of every linear layer but the head projected.

    See :class:`ProjectedAdamW`. Source: Zhao et al. (2024), arXiv:2403.03507.
    """
    layers = linear_layers(model, rival="galore-like").values()
    ranks = {layer.weight: rank_of(layer, settings.rank_fraction) for layer in layers}
    refresh_steps = max(1, total_steps // settings.refreshes)
    return Plan(optimizer=partial(ProjectedAdamW, ranks=ranks, refresh_steps=refresh_steps))
