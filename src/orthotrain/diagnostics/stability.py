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
from orthotrain.diagnostics._left_out import split_patterns, why_left_out
from orthotrain.diagnostics._look import Look, compared, kept, look_at, nothing_like
from orthotrain.errors import ConfigError, NonFiniteError, OrthotrainWarning, StateError
from orthotrain.layers import LowRankTransposedLinear
from orthotrain.layers._factors import low_rank_class_of
from orthotrain.linalg.matrices import weight_layout
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

    Large embeddings and heads are left out unless they are named, that is, where only ``"*"`` or
    ``"*.weight"`` selects them: weights more than 10 times as long as wide and of more than
    1,048,576 entries. The first look has one record for each: ``{"step", "method", "layer",
    "left_out"}``, the last the reason; ``handle.plan`` names them, too.

    A look takes one layer after another. Of a weight with a smaller side of 128 and more, polar
    factor and triangle come from one Gram matrix; ``stability`` and ``mixing`` are then within 1e-5
    of what float64 gives, and time and memory are those of ``benchmarks/watching.py``.
    Each of the ``lag`` looks kept takes ``2 m n + 2 k (k + 1)`` bytes per such matrix with
    ``k = min(m, n)``, half as much as the weight or the same if it is square. Smaller weights and
    those in float64 are kept, and compared, in their own precision.

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
        layers = [(n, m) for n, m in chosen if _is_watched(m)]
        _, named = split_patterns(self.params)
        kept = {p for _, p in select_parameters(run.model, named)} if named else set()
        left_out = {
            name: reason
            for name, module in layers
            if kept.isdisjoint(module._parameters.values())
            and (reason := why_left_out(module._parameters.get("weight")))
        }
        if len(left_out) == len(layers):
            raise ConfigError(
                f"BasisStability: nothing selected by {self.params!r} is the weight of a Linear, "
                "a convolution or an attention projection; only those have a basis to watch"
                + "".join(f". {name} is left out: {reason}" for name, reason in left_out.items())
            )
        watched = [(name, module) for name, module in layers if name not in left_out]
        return _BoundStability(self, run, watched, left_out)


class _BoundStability(Bound):
    def __init__(
        self,
        method: BasisStability,
        run: Run,
        layers: Sequence[tuple[str, nn.Module]],
        left_out: Mapping[str, str],
    ) -> None:
        self._method = method
        self._run = run
        self._layers = layers
        self._left_out = left_out
        self._looks: deque[dict[str, Look]] = deque(maxlen=method.lag)
        self._warned: set[str] = set()
        self._last: dict[str, float] = {}

    def before_step(self) -> None:
        if not self._looks:
            for name, reason in self._left_out.items():
                self._run.record(method=_NAME, layer=name, left_out=reason)
            self._looks.append({name: kept(look) for name, _, look in self._look()})

    def after_step(self) -> None:
        if self._run.step % self._method.every_steps:
            return
        # Taken apart layer by layer, so that old and new are held of one layer alone.
        earlier = self._looks.popleft() if len(self._looks) == self._method.lag else {}
        now: dict[str, Look] = {}
        self._looks.append(now)
        for name, rank, look in self._look():
            before = earlier.pop(name, None)
            # A weight that was cut by hand since starts again.
            if before is not None and before.q.shape == look.q.shape:
                self._record(name, rank, before, look)
            now[name] = kept(look, instead_of=before)

    def _look(self) -> Iterator[tuple[str, int, Look]]:
        for module_name, module in self._layers:
            for name, rank, weight in _matrices(module_name, module):
                try:
                    look = look_at(weight)
                except NonFiniteError:
                    look = nothing_like(weight)
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

    def _record(self, name: str, rank: int, before: Look, after: Look) -> None:
        stability, mixing = compared(before, after)
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
        return [line, *(f"  without {name}: {why}" for name, why in self._left_out.items())]

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
                {name: {"q": look.q.clone(), "r": look.r.clone()} for name, look in looks.items()}
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
            (
                {name: Look(entry["q"].clone(), entry["r"].clone()) for name, entry in look.items()}
                for look in looks
            ),
            maxlen=self._method.lag,
        )


def _is_watched(module: nn.Module) -> bool:
    """Whether the module has a weight with a basis."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    return _has_one_weight(module) and any(
        p is not None and p.ndim > 1 and p.numel() for p in module._parameters.values()
    )


def _has_one_weight(module: nn.Module) -> bool:
    """Linear layers, Transformers' ``Conv1D`` and convolutions, dense or low-rank."""
    transposed = low_rank_class_of(module) is LowRankTransposedLinear
    return transposed or isinstance(module, nn.Linear | _ConvNd)


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
    elif _has_one_weight(module):
        full: object = module.weight
        if isinstance(full, Tensor) and full.ndim > 1 and full.numel():
            matrix = weight_layout(module, "weight", full.shape).matrix(full.detach())
            yield name or "(model)", _rank(module, matrix), matrix


def _rank(module: nn.Module, weight: Tensor) -> int:
    rank = getattr(module, "rank", None)
    return rank if isinstance(rank, int) else min(weight.shape[-2:])
