"""Condition monitor: rank and condition of covariances, weights, gradients and updates."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Final, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from orthotrain._checks import require_steps
from orthotrain._doors import checked
from orthotrain.diagnostics._layer_covariance import (
    Covariance,
    covariance_of,
    has_covariance,
    is_spectral,
    place_to_look,
)
from orthotrain.diagnostics._left_out import split_patterns, why_left_out
from orthotrain.diagnostics._reading import What, in_words, read_covariance, read_weight
from orthotrain.diagnostics._watch import ClosureHook, LookHook
from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.linalg._gram_in_parts import fits
from orthotrain.linalg.condition import ConditionMethod
from orthotrain.methods._optimizer import gradient_scale
from orthotrain.methods.protocol import Bound, Method, Phase, Record, Run
from orthotrain.methods.select import (
    Pattern,
    named_modules_clean,
    select_modules,
    select_parameters,
)
from orthotrain.methods.targets import Target, dense_gradient, find_targets, of_this_step

_NAME: Final = "condition_monitor"

# Copies of weights before a step: one in so many of the model's numbers, or so many numbers.
_SHARE_COPIED: Final = 10
_ALWAYS_COPIED: Final = 2**22


@checked
@dataclass(frozen=True)
class ConditionMonitor(Method):
    """Record how well conditioned the covariances, weights, gradients and steps of layers are.

    Every ``every_steps`` optimizer steps, one record per thing read: ``{"step", "method":
    "condition_monitor", "what", "layer", "rank", "size", "rtol", "condition_range",
    "condition_ridge", "condition_float32", "condition_float64", "largest", "ridge", "norm",
    "dtype", "matrices"}``. A condition number alone means little: the covariance of 27 inputs
    behind 64 channels reads anything from 1e2 to 1e16, by what is done about the 37 directions
    that hold only rounding. So a record tells four, with what they depend on:

    - ``rank`` of ``size`` values are at least ``rtol`` times the largest, and
      ``condition_range`` is the condition over these.
    - ``condition_ridge`` is the condition with ``ridge`` added: what the root works on. ``None``
      where nothing is added.
    - ``condition_float32`` and ``condition_float64`` divide by the smallest value that the
      precision gives, as a plain condition number does.

    An infinite number is recorded as ``None``; where the input held NaN or infinity ``rank`` is
    ``None``, too, and there is one warning per layer.

    ``what`` is one of:

    - ``"covariance"``: eigenvalues of the covariance that enters a spectral layer, in the first
      forward pass in training since the last step; with gradient accumulation that is the first
      part of the batch. Formed anew in float64 from the layer's input, as the layer forms it.
      Further fields: ``samples``, how many vectors it was averaged over (its rank is below
      that), and ``input_dtype``.
    - ``"weight"``: singular values of the weight after the step, as the matrix or matrices
      (groups of a convolution) of its outputs by all else. Of a low-rank layer that is the
      core, which has those of the weight; of a parametrized weight the tensor that is trained.
    - ``"gradient"``: of the gradient the optimizer gets, after every method that changes it.
    - ``"update"``: of what the step did to the weight, new less old, whatever did it, but for a
      change of its structure (a rank update), which comes after.

    A layer with several matrices (groups of channels, one matrix per sample in covariance pooling,
    of which at most eight per batch are read, evenly spaced) has one record: every number is the
    median over the ``matrices`` read, and ``worst_rank``, ``worst_condition_range`` and
    ``worst_condition_ridge`` are of the worst.

    A look costs a pass over the layer's input and, per matrix, one or two decompositions without
    vectors. Weights are read one after another. What it costs in a whole GPT and behind the stem of
    a ResNet is measured by ``python benchmarks/watching.py``. A step without a look costs tens of
    microseconds. All is read on the CPU, so a look waits for an accelerator.

    An update needs a copy of the weight before the step. Copies take at most a tenth of the
    model's numbers (or 4,194,304 numbers, or one weight, where that is more). Where the watched
    weights are more than that, looks read the updates of a part of them in turn; ``handle.plan``
    says in how many looks each has its turn.

    Args:
        params: Weights to watch, their gradients and updates with them: name patterns, modules
            or parameters, as in :func:`orthotrain.methods.select_parameters`. ``()``: none.
            ``"*"`` and ``"*.weight"`` are all matrices that the optimizer trains, but for large
            embeddings and heads: more than 10 times as long as wide, and of more than 1,048,576
            entries. The first look has one record for each of these, ``{"step", "method",
            "layer", "left_out"}`` with the reason; any other pattern names them.
        every_steps: Optimizer steps between looks, a whole number of at least 1.
        covariances: Layers whose covariance is watched: patterns or modules, as in
            :func:`orthotrain.methods.select_modules`. ``None``: every spectral layer of the
            model, that is, every module with a method ``covariance(x)`` and a number ``ridge``.
            A plain batch norm may be named, too: then the covariance of its channels is read,
            with its ``eps`` for a ridge. ``()``: none.
        rtol: In ``[0, 1)``, the tolerance of all ranks. ``None``: what rounding explains, stated
            in each record. That is ``max(m, n) * eps`` for weights and gradients, for updates
            at least ``eps * |weight| / |update|``, and ``n * max(eps, input_eps**2)`` for
            covariances; never above .5.
        method: How singular values of weights, gradients and updates are found, as in
            :func:`orthotrain.linalg.condition_readings`. ``"auto"`` takes one Gram matrix from a
            smaller side of 128 on: rank, range, largest value and norm are as good, but
            ``condition_float32`` is ``None``, and so is ``condition_float64`` above ``1e6``,
            where it would tell rounding. ``"svd"`` reads all four at any size. ``route`` in a
            record tells what was done.

    Raises:
        ConfigError: ``every_steps`` below 1 or ``rtol`` outside its range. At ``attach``: a
            pattern matches nothing, nothing it matches can be watched, or nothing is left to
            watch.

    Note:
        Nothing is seen of a layer inside a module compiled with ``torch.compile``, which runs no
        hooks of its parts: there is a warning and no record. To see it, leave it out of what is
        compiled: ``model.norm = torch.compiler.disable(model.norm)`` first. With ``auto=False``,
        call ``handle.before_step()``, too; without it, gradients and updates are not recorded.
        With several processes each reads what it has itself.

    Source:
        The four senses and the tolerances are ours. What is watched: Song, Sebe and Wang,
        arXiv:2207.02119.
    """

    params: Pattern | Sequence[Pattern] = ()
    _: KW_ONLY
    every_steps: int = 1
    covariances: Pattern | Sequence[Pattern] | None = None
    rtol: float | None = None
    method: ConditionMethod = "auto"

    phase: ClassVar[Phase] = Phase.WATCH
    name: ClassVar[str] = _NAME

    def __post_init__(self) -> None:
        require_steps("ConditionMonitor", "every_steps", self.every_steps)
        if self.rtol is not None and not 0.0 <= self.rtol < 1.0:
            raise ConfigError(
                f"ConditionMonitor: rtol must be in [0, 1), got {self.rtol}; it is a share of the "
                "largest value, None for what rounding explains"
            )
        if self.method not in get_args(ConditionMethod):
            raise ConfigError(
                f"ConditionMonitor: method must be one of {', '.join(get_args(ConditionMethod))}, "
                f"got {self.method!r}"
            )

    def bind(self, run: Run) -> Bound:
        """Find what to watch; see :class:`~orthotrain.methods.Method`."""
        targets: list[Target] = []
        params, left_out = self._params(run)
        if params:
            targets = find_targets("ConditionMonitor", run, params, reads_gradient=False)
        layers = self._layers(run.model)
        if not targets and not layers:
            raise ConfigError(
                "ConditionMonitor: nothing to watch: params name no matrix and no spectral layer "
                "was found; name weights in params, or batch norms in covariances"
                + "".join(f". {name} is left out: {reason}" for name, reason in left_out.items())
            )
        return _BoundMonitor(self, run, targets, layers, left_out)

    def _params(self, run: Run) -> tuple[list[Pattern], dict[str, str]]:
        """What is named, with the matrices that ``"*"`` means; and what of them is left out."""
        broad, params = split_patterns(self.params)
        if not broad:
            return params, {}
        found = select_parameters(run.model, broad)
        named = {p for _, p in select_parameters(run.model, params)} if params else set()
        owners = run.owners()
        left_out = {}
        for name, parameter in found:
            if parameter.ndim < 2 or parameter not in owners or parameter in named:
                continue
            if reason := why_left_out(parameter):
                left_out[name] = reason
            else:
                params.append(parameter)
        return params, left_out

    def _layers(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        if self.covariances is None:
            return [(n, m) for n, m in named_modules_clean(model) if is_spectral(m)]
        patterns = self.covariances
        chosen: set[nn.Module] = set()
        for pattern in [patterns] if isinstance(patterns, Pattern) else patterns:
            found = select_modules(model, pattern)
            watchable = {module for _, module in found if has_covariance(module)}
            if not watchable:
                kinds = ", ".join(sorted({type(module).__name__ for _, module in found}))
                raise ConfigError(
                    f"ConditionMonitor: {pattern!r} in covariances means {kinds}, need a spectral "
                    "layer (with a method covariance and a ridge) or a batch norm"
                )
            chosen |= watchable
        return [(name, module) for name, module in named_modules_clean(model) if module in chosen]


class _BoundMonitor(Bound):
    def __init__(
        self,
        method: ConditionMonitor,
        run: Run,
        targets: Sequence[Target],
        layers: Sequence[tuple[str, nn.Module]],
        left_out: Mapping[str, str],
    ) -> None:
        self._method = method
        self._run = run
        self._targets = targets
        self._left_out = left_out
        self._turns = _turns(targets, sum(p.numel() for p in run.model.parameters()))
        self._layers = dict(layers)
        self._covariances: dict[str, Covariance] = {}
        self._before: dict[Target, Tensor] = {}
        # By what and layer: of an optimizer that steps more often than others, the last step.
        self._pending: dict[tuple[What, str], Record] = {}
        self._has_closure = False
        self._warned: set[tuple[str, str]] = set()
        self._last: dict[tuple[What, str], Record] = {}
        self._hooks: list[RemovableHandle] = []
        for name, module in layers:
            place, is_output = place_to_look(module)
            self._hooks.append(LookHook(self, name, is_output).put_on(place))
        if targets:
            self._hooks += [ClosureHook(self).put_on(each) for each in run.optimizers]

    # --- during a step -----------------------------------------------------------------------

    @property
    def _due_next(self) -> bool:
        return (self._run.step + 1) % self._method.every_steps == 0

    def wants(self, layer: str) -> bool:
        """Whether the step that this forward pass is for is due, and ``layer`` not yet seen."""
        return self._due_next and layer not in self._covariances

    def look(self, layer: str, x: Tensor) -> None:
        """Keep the covariance until the step is done."""
        start = time.perf_counter()
        covariance = covariance_of(self._layers[layer], x)
        self.forward_seconds += time.perf_counter() - start
        if covariance is not None:
            self._covariances[layer] = covariance

    def step_has_closure(self, closure: bool) -> None:
        """A closure computes gradients within the step, so they are there only after it."""
        self._has_closure = closure

    def before_step(self) -> None:
        if not self._targets or not self._due_next:
            return
        look = (self._run.step + 1) // self._method.every_steps
        targets = of_this_step(self._turns[look % len(self._turns)], self._run)
        if not self._has_closure:
            self._keep_gradients()  # before there are copies: the two do not add up in memory
        self._before = {t: t.parameter.detach().clone() for t in targets}

    def measure(self) -> None:
        if not self._before:
            return
        before, self._before = self._before, {}
        if self._has_closure:
            self._keep_gradients()
        for target in list(before):
            old = before.pop(target).cpu()
            new = target.parameter.detach().cpu()
            # Of a large weight the difference is exact enough in float32, which is exact for less.
            wide = torch.float32 if fits(target.layout.matrices(new)) else torch.float64
            delta = new.to(wide, copy=True).sub_(old)
            read = self._read("update", target, delta, old=old)
            self._pending["update", target.name] = read

    def _keep_gradients(self) -> None:
        scale = gradient_scale(self._run.stepping)
        for target in of_this_step(self._targets, self._run):
            gradient = dense_gradient("ConditionMonitor", target)
            if gradient is not None:
                gradient = gradient.detach()
                gradient = gradient if scale == 1 else gradient / scale
                read = self._read("gradient", target, gradient)
                self._pending["gradient", target.name] = read

    def _read(
        self, what: What, target: Target, tensor: Tensor, *, old: Tensor | None = None
    ) -> Record:
        rtol, method = self._method.rtol, self._method.method
        return read_weight(what, target, tensor, rtol=rtol, method=method, difference_from=old)

    def after_step(self) -> None:
        if self._run.step % self._method.every_steps:
            return
        if self._run.step == self._method.every_steps:
            for name, reason in self._left_out.items():
                self._run.record(method=_NAME, layer=name, left_out=reason)
        covariances, self._covariances = self._covariances, {}
        for layer in self._layers:
            if layer in covariances:
                self._record(read_covariance(layer, covariances[layer], rtol=self._method.rtol))
            else:
                self._warn_once(
                    ("unseen", layer),
                    f"no forward pass of {layer} in training was seen for step {self._run.step}, "
                    "so its covariance is not recorded; inside torch.compile hooks do not run: "
                    "leave the layer out with torch.compiler.disable",
                )
        for target in self._targets:
            self._record(self._read("weight", target, target.parameter.detach()))
        pending, self._pending = self._pending, {}
        for record in pending.values():
            self._record(record)

    def _record(self, record: Record) -> None:
        what, layer = record["what"], record["layer"]
        if record["rank"] is None:
            self._warn_once(
                (what, layer),
                f"the {what} of {layer} holds NaN or infinity or has no decomposition at step "
                f"{self._run.step}; its readings are recorded as None",
            )
        else:
            self._last[what, layer] = {"step": self._run.step, **record}
        self._run.record(method=_NAME, **record)

    def _warn_once(self, key: tuple[str, str], sentence: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"ConditionMonitor: {sentence}", OrthotrainWarning, stacklevel=2)

    # --- the rest ----------------------------------------------------------------------------

    def plan(self) -> list[str]:
        parts = []
        if self._layers:
            parts.append(f"the covariance that enters {_listed(list(self._layers))}")
        if self._targets:
            names = _listed([target.name for target in self._targets])
            parts.append(f"weight, gradient and update of {names}")
        every = self._method.every_steps
        line = f"condition of {' and of '.join(parts)}, every {every} steps"
        total = self._run.total_steps
        if total is not None and every > total:
            line += f": never, as training ends at step {total}"
        lines = [line, *(f"  without {name}: {why}" for name, why in self._left_out.items())]
        if (looks := len(self._turns)) > 1:
            lines.append(f"  updates of a part of them per look, each in one of {looks} looks")
        return lines

    def notes(self) -> list[str]:
        lines = []
        for what in ("covariance", "weight", "gradient", "update"):
            read = [record for (kind, _), record in self._last.items() if kind == what]
            if read:
                lines.append(in_words(read))
        return lines

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        # The step count is another now, and what was seen was for another step.
        self._covariances, self._before, self._pending = {}, {}, {}

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._covariances, self._before, self._pending = {}, {}, {}


def _turns(targets: Sequence[Target], numbers: int) -> list[list[Target]]:
    """Targets in groups whose copies are small beside a model of so many numbers."""
    most = max(numbers // _SHARE_COPIED, _ALWAYS_COPIED)
    turns: list[list[Target]] = [[]]
    held = 0
    for target in targets:
        size = target.parameter.numel()
        if turns[-1] and held + size > most:
            turns.append([])
            held = 0
        turns[-1].append(target)
        held += size
    return turns


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name or "(model)" for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
