"""Basis stability: how far each layer's orthogonal basis moved, recorded while training."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from orthotrain._checks import require_count, require_steps
from orthotrain._doors import checked
from orthotrain._sharded import USE_DDP, require_whole, sharding_of
from orthotrain.errors import ConfigError, NonFiniteError, OrthotrainWarning, StateError
from orthotrain.layers import LowRankTransposedLinear
from orthotrain.layers._factors import low_rank_class_of
from orthotrain.linalg import (
    basis_stability_from_polar,
    mixing_similarity,
    polar_factor,
    working_dtype,
)
from orthotrain.linalg.matrices import weight_layout
from orthotrain.linalg.rank import rounding_rtol
from orthotrain.methods.protocol import Bound, Method, Phase, Run
from orthotrain.methods.select import Pattern, select_modules, select_parameters

_NAME = "basis_stability"


@checked
@dataclass(frozen=True, kw_only=True)
class BasisStability(Method):
    """Record how far the basis of every weight moved since an earlier look.

    Every ``every_steps`` optimizer steps, one record per weight: ``{"step", "method":
    "basis_stability", "layer", "stability", "mixing", "rank"}``. ``stability`` compares the
    polar factors, ``mixing`` what the weight does inside its basis, both with the look ``lag``
    looks earlier; the first look is right before the first step. Cosines are averaged over the
    directions that both weights have, so a cut of the rank by itself does not lower the curve.
    Without any, as for a layer that starts at zero, ``stability`` is ``None``. A weight with NaN
    or infinity is recorded with ``None`` for both, and warned about once.

    Watched are the weights of Linear, of convolutions, of Transformers' ``Conv1D``, and the
    query, key and value projections of ``MultiheadAttention``, each for itself as ``<layer>.q``,
    ``.k`` and ``.v``. Weights are read as matrices of outputs by inputs, as everywhere in this
    package: a convolution is one matrix per group, a transposed one, too. Of several groups one
    record tells the mean over all their directions, and ``rank`` is that of one group. A low-rank
    layer is seen as its full weight, so its curve goes on after the switch.

    A look costs one polar factor and one QR decomposition per matrix, and each of the ``lag``
    looks kept takes ``m n + min(m, n)^2`` numbers per matrix.

    Args:
        every_steps: Optimizer steps between looks, a whole number of at least 1.
        lag: How many looks lie between the two that are compared; the paper's figures compare
            with five epochs earlier, that is ``every_steps`` of one epoch and ``lag=5``.
        params: Name patterns, modules or parameters, as in
            :func:`orthotrain.methods.select_parameters`.

    Raises:
        ConfigError: ``every_steps`` or ``lag`` below 1, or ``params`` empty. At ``attach``: a
            pattern matches nothing, nothing selected is a weight of the kinds above, or one is
            sharded over processes.

    Note:
        With ``auto=False``, call ``handle.before_step()`` too; without it the first look is
        ``every_steps`` later.

    Source:
        Coquelin et al., arXiv:2401.08505, Figure 1. The normalization of ``mixing`` is ours.
    """

    every_steps: int
    lag: int = 1
    params: Pattern | Sequence[Pattern] = ("*",)

    phase: ClassVar[Phase] = Phase.WATCH
    name: ClassVar[str] = _NAME

    def __post_init__(self) -> None:
        require_steps("BasisStability", "every_steps", self.every_steps)
        require_count("BasisStability", "lag", self.lag, "looks")
        if not isinstance(self.params, Pattern) and not self.params:
            raise ConfigError('BasisStability: params is empty; ("*",) means every layer')

    def bind(self, run: Run) -> Bound:
        """Find the layers to watch; see :class:`~orthotrain.methods.Method`."""
        owned = [parameter for _, parameter in select_parameters(run.model, self.params)]
        chosen = select_modules(run.model, owned)
        if any(sharding_of(module) for _, module in chosen):
            require_whole("BasisStability", run.model, USE_DDP)
        layers = [(n, m) for n, m in chosen if list(_matrices(n, m))]
        if not layers:
            raise ConfigError(
                f"BasisStability: nothing selected by {self.params!r} is the weight of a Linear, "
                "a convolution or an attention projection; only those have a basis to watch"
            )
        return _BoundStability(self, run, layers)


@dataclass(frozen=True)
class _Look:
    """What later looks need of one weight, computed once."""

    q: Tensor
    r: Tensor


class _BoundStability(Bound):
    def __init__(
        self, method: BasisStability, run: Run, layers: Sequence[tuple[str, nn.Module]]
    ) -> None:
        self._method = method
        self._run = run
        self._layers = layers
        self._looks: deque[dict[str, _Look]] = deque(maxlen=method.lag)
        self._warned: set[str] = set()
        self._last: dict[str, float] = {}

    def before_step(self) -> None:
        if not self._looks:
            self._looks.append({name: look for name, _, look in self._look()})

    def after_step(self) -> None:
        if self._run.step % self._method.every_steps:
            return
        earlier = self._looks[0] if len(self._looks) == self._method.lag else None
        now: dict[str, _Look] = {}
        for name, rank, look in self._look():
            now[name] = look
            # A weight that was cut by hand since starts again.
            if earlier is not None and earlier[name].q.shape == look.q.shape:
                self._record(name, rank, earlier[name], look)
        self._looks.append(now)

    def _look(self) -> Iterator[tuple[str, int, _Look]]:
        for module_name, module in self._layers:
            for name, rank, weight in _matrices(module_name, module):
                try:
                    look = _look_at(weight)
                except NonFiniteError:
                    look = _nothing_like(weight)
                    self._warn_once(name)
                yield name, rank, look

    def _warn_once(self, name: str) -> None:
        if name in self._warned:
            return
        self._warned.add(name)
        warnings.warn(
            f"BasisStability: the weight of {name} holds NaN or infinity at step "
            f"{self._run.step}; its stability is recorded as None",
            OrthotrainWarning,
            stacklevel=2,
        )

    def _record(self, name: str, rank: int, before: _Look, after: _Look) -> None:
        stability: float | None = None
        mixing: float | None = None
        if before.r.isfinite().all() and after.r.isfinite().all():
            device = after.q.device
            stability = _stability(before.q.to(device), after.q)
            mixing = mixing_similarity(before.r.to(device), after.r).mean().item()
        if stability is not None:
            self._last[name] = stability
        self._run.record(method=_NAME, layer=name, stability=stability, mixing=mixing, rank=rank)

    def plan(self) -> list[str]:
        method = self._method
        first = method.every_steps * method.lag
        line = (
            f"basis stability of {len(self._layers)} layers every {method.every_steps} steps, "
            f"first at step {first}"
        )
        total = self._run.total_steps
        if total is not None and first > total:
            line += f": never, as training ends at step {total}"
        return [line]

    def notes(self) -> list[str]:
        if not self._last:
            return []
        least = min(self._last, key=self._last.__getitem__)
        mean = sum(self._last.values()) / len(self._last)
        return [
            f"basis stability: mean {mean:.3f} over {len(self._last)} weights, "
            f"lowest {self._last[least]:.3f} ({least})"
        ]

    def state_dict(self) -> dict[str, Any]:
        return {
            "looks": [
                {name: {"q": look.q, "r": look.r} for name, look in looks.items()}
                for looks in self._looks
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        looks = state.get("looks")
        if not isinstance(looks, list):
            raise StateError(
                f"BasisStability: need the entry 'looks' in its state, got {sorted(state)}"
            )
        shapes = {
            name: tuple(weight.shape)
            for module_name, module in self._layers
            for name, _, weight in _matrices(module_name, module)
        }
        for look in looks:
            found = {name: tuple(entry["q"].shape) for name, entry in look.items()}
            if found != shapes:
                differing = sorted(
                    name for name in {*found, *shapes} if found.get(name) != shapes.get(name)
                )
                raise StateError(
                    "BasisStability: the state is of other weights than the model's, differing "
                    f"in {', '.join(differing[:5])}; load it into the model it was saved with"
                )
        self._looks = deque(
            ({name: _Look(**entry) for name, entry in look.items()} for look in looks),
            maxlen=self._method.lag,
        )


@torch.no_grad()
def _look_at(weight: Tensor) -> _Look:
    work = weight.to(working_dtype(weight))
    # Judged by the dtype the weight was rounded in: what a low-rank product leaves in its null
    # directions is noise of that size, and would count as a basis in a wider dtype.
    rtol = rounding_rtol(weight)
    tall = work if work.shape[-2] >= work.shape[-1] else work.mT
    kept = torch.promote_types(weight.dtype, torch.float32)
    return _Look(
        q=polar_factor(work, rtol=rtol).to(kept), r=torch.linalg.qr(tall, mode="r").R.to(kept)
    )


def _stability(q_before: Tensor, q_after: Tensor) -> float | None:
    # Every singular value of a polar factor is one or zero, so its squares sum to its rank.
    ranks = [q.square().sum(dim=(-2, -1)).round() for q in (q_before, q_after)]
    directions = int(torch.minimum(*ranks).sum().item())
    if directions == 0:
        return None
    over_all = basis_stability_from_polar(q_before, q_after).sum().item()
    return max(-1.0, min(1.0, over_all * min(q_after.shape[-2:]) / directions))


def _nothing_like(weight: Tensor) -> _Look:
    k = min(weight.shape[-2:])
    r = weight.new_full((*weight.shape[:-2], k, k), torch.nan)
    return _Look(q=torch.full_like(weight, torch.nan), r=r)


@torch.no_grad()
def _matrices(name: str, module: nn.Module) -> Iterator[tuple[str, int, Tensor]]:
    """Name, rank and full weight of each projection of a layer; nothing for other modules.

    A weight is ``(m, n)``, or ``(groups, m, n)``.
    """
    if isinstance(module, nn.MultiheadAttention):
        packed = module.in_proj_weight
        weights = (
            (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            if packed is None
            else weight_layout(module, "in_proj_weight", packed.shape).matrices(packed.detach())
        )
        for letter, weight in zip("qkv", weights, strict=True):
            yield f"{name}.{letter}" if name else letter, _rank(module, weight), weight.detach()
    elif isinstance(module, nn.Linear | _ConvNd) or (
        low_rank_class_of(module) is LowRankTransposedLinear
    ):
        full: object = module.weight
        if isinstance(full, Tensor) and full.ndim > 1 and full.numel():
            matrix = weight_layout(module, "weight", full.shape).matrix(full.detach())
            yield name or "(model)", _rank(module, matrix), matrix


def _rank(module: nn.Module, weight: Tensor) -> int:
    rank = getattr(module, "rank", None)
    return rank if isinstance(rank, int) else min(weight.shape[-2:])
