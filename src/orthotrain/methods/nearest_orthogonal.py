"""``NearestOrthogonalGradient``: the gradient, or the executed update, made orthogonal."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, assert_never

import torch
from torch import Tensor

from orthotrain._checks import require_steps
from orthotrain._doors import checked
from orthotrain.errors import NonFiniteError, OrthotrainWarning, StateError
from orthotrain.linalg import polar_factor, working_dtype
from orthotrain.linalg.rank import difference_rtol
from orthotrain.methods._measure import Measure, measure_matrices
from orthotrain.methods._optimizer import (
    gradient_scale,
    learning_rate,
    require_learning_rate,
)
from orthotrain.methods.bases import GradientBound, GradientMethod
from orthotrain.methods.protocol import Bound, Run
from orthotrain.methods.targets import Target, counted, listed, owners_of

When = Literal["gradient", "update"]
Scale = Literal["none", "gradient_norm", "rms"]
OnNonfinite = Literal["raise", "skip"]

_NAME = "nearest_orthogonal_gradient"
# Root mean square of the entries of AdamW's update, which Liu et al. (2025) give Muon's; so
# torch.optim.Muon with adjust_lr_fn="match_rms_adamw".
_ADAMW_RMS = 0.2
# The summary gives the median condition of so many of the latest records.
_RECENT = 10_000


@checked
@dataclass(frozen=True)
class NearestOrthogonalGradient(GradientMethod):
    r"""NOG: replace a weight's gradient, or its executed update, by the nearest orthogonal matrix.

    With the gradient as a matrix ``G = U diag(s) V^T`` of outputs by inputs, its polar factor
    ``R = U V^T`` is the nearest matrix with orthonormal rows (columns, if tall): directions are
    kept, every singular value becomes one. Convolution weights are read as (out, in * kh * kw),
    transposed ones, too. Grouped ones are one matrix per group, packed attention projections are
    three, stacked gates of recurrent layers are one. The two factors of a low-rank layer with
    trained bases are two; ``"rms"`` then counts the wider one, ``complete`` reaches what it can.

    A zero gradient stays zero. A parameter without a gradient is left alone.

    Args:
        params: Name patterns, modules or parameters, as in
            :func:`orthotrain.methods.select_parameters`.
        when: ``"gradient"`` as published: after backward, before momentum and weight decay, so
            the step that is executed is a sum of orthogonal matrices and not orthogonal itself.
            ``"update"`` acts after the step and replaces ``delta = w_new - w_old`` by its polar
            factor times the learning rate of the parameter's group. So it works with any
            optimizer; weight decay is part of ``delta``. Directions of ``delta`` within the
            rounding of the weights count as null. Costs a copy of each weight per step.
        scale: ``"none"``: ``|R|_F = sqrt(min(m, n))``, whatever ``|G|`` was. ``"gradient_norm"``:
            times ``|G|_F / |R|_F``, so that the norm stays that of what is replaced, each matrix
            for itself. ``"rms"``: times ``0.2 sqrt(max(m, n))``, so that the root mean square of
            the entries is 0.2 at full rank, about that of AdamW's update.
        complete: Give null directions of a non-zero gradient a singular value of one, too, in
            arbitrary directions; else they stay zero.
        on_nonfinite: What NaN or infinity in a gradient does. ``"raise"`` stops before anything
            is changed. ``"skip"`` warns and takes no step for that parameter: its gradient is
            set to ``None``, so value and optimizer state stay as they are.
        record_every: Optimizer steps between records, a whole number of at least 1; the first
            comes after so many steps. There is one record per weight. ``gradient_norm``,
            ``gradient_condition`` and ``gradient_rank`` are of the gradient before NOG.
            ``update_norm``, ``update_condition`` and ``update_rank`` are of the step as executed,
            after all methods. Rank and condition count singular
            values of at least ``gradient_rtol`` or ``update_rtol`` times the largest: the others
            may be rounding, in the update that of the weights. A record costs two eigenvalue
            decompositions of the smaller side.

    Raises:
        ConfigError: ``params`` empty, an unknown choice, or ``record_every`` that is no whole
            number of at least 1. At ``attach``: a pattern matches nothing; a parameter is no
            matrix, is sharded, or is not in the optimizer; or the optimizer is LBFGS, which
            computes gradients inside its step.
        NonFiniteError: In a step, with ``on_nonfinite="raise"``; names the parameter.

    Note:
        With ``auto=False``, call ``handle.before_step()`` once gradients are unscaled. Under DDP
        gradients are averaged before the step, so all processes act alike.

    Source:
        Song, Sebe and Wang (2022), arXiv:2207.02119. ``when="update"`` is the order of Muon
        (``torch.optim.Muon``), ``"rms"`` its ``adjust_lr_fn="match_rms_adamw"`` after Liu et al.
        (2025), arXiv:2502.16982; ``"gradient_norm"`` is ours.
    """

    _: KW_ONLY
    when: When = "gradient"
    scale: Scale = "none"
    complete: bool = False
    on_nonfinite: OnNonfinite = "raise"
    record_every: int = 100

    name: ClassVar[str] = _NAME

    def __post_init__(self) -> None:
        require_steps("NearestOrthogonalGradient", "record_every", self.record_every)

    def bind(self, run: Run) -> Bound:
        """Find the weights; see :class:`~orthotrain.methods.Method`."""
        targets = self.find(run)
        if self.when == "update" and self.scale != "gradient_norm":
            require_learning_rate(type(self).__name__, owners_of(targets, run))
        return _BoundNearest(self, run, targets)

    def change(self, gradient: Tensor, target: Target) -> Tensor:
        """The scaled polar factor of each matrix."""
        return self.nearest(gradient)

    def nearest(self, matrices: Tensor, *, unit: float = 1.0, rtol: float | None = None) -> Tensor:
        """Scaled polar factors of ``(*blocks, m, n)``; ``unit`` is the length of a step of one."""
        r = polar_factor(matrices, rtol=rtol, complete=self.complete)
        match self.scale:
            case "none":
                factor = unit
            case "rms":
                factor = unit * _ADAMW_RMS * math.sqrt(max(matrices.shape[-2:]))
            case "gradient_norm":
                old, new = _norms(matrices), _norms(r)
                ratio = old / torch.where(new > 0, new, 1.0)
                return (r * ratio).to(r.dtype)
            case _:
                assert_never(self.scale)
        return r if factor == 1.0 else r * factor


class _BoundNearest(GradientBound):
    def __init__(
        self, method: NearestOrthogonalGradient, run: Run, targets: Sequence[Target]
    ) -> None:
        super().__init__(type(method).__name__, run, targets)
        self._method = method
        self._before: dict[Target, Tensor] = {}
        self._measured: dict[Target, Measure] = {}
        self._skipped = 0
        self._conditions: deque[tuple[float | None, float | None]] = deque(maxlen=_RECENT)

    def before_step(self) -> None:
        due = (self._run.step + 1) % self._method.record_every == 0
        scale = gradient_scale(self._run.stepping)
        self._measured, self._before = {}, {}
        with torch.no_grad():
            gradients = self._gradients()
            if self._method.when == "gradient" and not due and len(gradients) == 1:
                try:  # the polar factor looks at the numbers by itself
                    self._replace(gradients, scale=scale)
                except NonFiniteError:
                    self._leave_out_nonfinite(gradients)
                    if gradients:
                        raise
                return
            self._leave_out_nonfinite(gradients)
            if due:
                for target, gradient in gradients.items():
                    seen = measure_matrices(target.layout.matrices(gradient))
                    self._measured[target] = seen._replace(norm=seen.norm / scale)
            if self._method.when == "gradient":
                self._replace(gradients, scale=scale)
            keep = gradients if due or self._method.when == "update" else ()
            self._before = {target: target.parameter.detach().clone() for target in keep}

    def _leave_out_nonfinite(self, gradients: dict[Target, Tensor]) -> None:
        """Gradients with NaN or infinity raise, or lose their step."""
        for target in _with_nonfinite(gradients):
            self._meet_nonfinite(target, gradients.pop(target), "gradient")
            target.parameter.grad = None

    def _meet_nonfinite(self, target: Target, values: Tensor, what: str) -> None:
        bad = int((~values.isfinite()).sum())
        message = (
            f"{self._name}: {bad} of {values.numel()} numbers in the {what} of {target.name} are "
            f"NaN or infinite at step {self._run.step}"
        )
        match self._method.on_nonfinite:
            case "raise":
                raise NonFiniteError(
                    f"{message}; find what made them, or leave out such steps with "
                    "on_nonfinite='skip'"
                )
            case "skip":
                self._skipped += 1
                warnings.warn(
                    f"{message}; no step is taken for it", OrthotrainWarning, stacklevel=4
                )
            case _:
                assert_never(self._method.on_nonfinite)

    def _replace(self, gradients: Mapping[Target, Tensor], *, scale: float) -> None:
        """Write the orthogonal gradients; matrices of one kind are decomposed together."""
        kinds: dict[tuple[object, ...], list[Target]] = {}
        for target, gradient in gradients.items():
            layout = target.layout
            kind = (layout.m, layout.n, gradient.dtype, gradient.device)
            kinds.setdefault(kind, []).append(target)
        for members in kinds.values():
            if len(members) == 1:
                # One matrix by itself takes the short way through the polar factor.
                gradient, layout = gradients[members[0]], members[0].layout
                part = self._method.nearest(layout.matrix(gradient), unit=scale)
                gradient.copy_(layout.tensor(part))
                continue
            parts = [target.layout.matrices(gradients[target]) for target in members]
            whole = self._method.nearest(torch.cat(parts), unit=scale)
            replaced = torch.split(whole, [len(part) for part in parts])
            for target, part in zip(members, replaced, strict=True):
                gradients[target].copy_(target.layout.tensor(part))

    def after_step(self) -> None:
        super().after_step()
        if self._method.when == "update":
            self._replace_updates()

    @torch.no_grad()
    def _replace_updates(self) -> None:
        """Write the weights that orthogonal updates lead to."""
        groups = self._run.groups()
        deltas = {t: t.parameter.detach() - before for t, before in self._before.items()}
        for target in _with_nonfinite(deltas):
            self._meet_nonfinite(target, deltas.pop(target), "update")
            target.parameter.copy_(self._before.pop(target))
            self._measured.pop(target, None)
        for target, delta in deltas.items():
            weight, layout = self._before[target], target.layout
            lr = learning_rate(groups[target.parameter]) if self._needs_lr else 1.0
            blocks = zip(layout.matrices(delta), layout.matrices(weight), strict=True)
            steps = [self._method.nearest(d, unit=lr, rtol=_null_rtol(w, d)) for d, w in blocks]
            target.parameter.copy_(weight + layout.tensor(torch.stack(steps)))

    @property
    def _needs_lr(self) -> bool:
        return self._method.scale != "gradient_norm"

    def measure(self) -> None:
        before, self._before = self._before, {}
        if self._measured:
            with torch.no_grad():
                self._record(before)

    def _record(self, before: Mapping[Target, Tensor]) -> None:
        """One record per weight, from what it was before the step."""
        for target, gradient in self._measured.items():
            weight = before[target]
            delta = target.layout.matrices(target.parameter.detach() - weight)
            finite = bool(delta.isfinite().all())
            update = measure_matrices(delta, difference_from=weight) if finite else None
            condition = None if update is None else update.condition
            self._conditions.append((gradient.condition, condition))
            self._run.record(
                method=_NAME,
                layer=target.name,
                gradient_norm=gradient.norm,
                gradient_condition=gradient.condition,
                gradient_rank=gradient.rank,
                gradient_rtol=gradient.rtol,
                update_norm=None if update is None else update.norm,
                update_condition=condition,
                update_rank=None if update is None else update.rank,
                update_rtol=None if update is None else update.rtol,
            )
        self._measured = {}

    def plan(self) -> list[str]:
        what = "gradient" if self._method.when == "gradient" else "executed update"
        return [
            f"nearest orthogonal {what} of {counted(self._targets)} at every step: "
            f"{listed(self._targets)}"
        ]

    def notes(self) -> list[str]:
        what = "gradient" if self._method.when == "gradient" else "executed update"
        line = f"nearest orthogonal {what} of {counted(self._targets)}"
        if self._conditions:
            gradients, updates = zip(*self._conditions, strict=True)
            line += (
                f": median condition {_median(gradients)} of the gradient, "
                f"{_median(updates)} of the executed update"
            )
        if self._skipped:
            line += f"; {self._skipped} steps of a weight left out for NaN or infinity"
        return [line]

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        skipped = state.get("skipped")
        if not isinstance(skipped, int):
            raise StateError(
                f"{self._name}: need the entry 'skipped' in its state, got {sorted(state)}"
            )
        self._skipped = skipped


def _with_nonfinite(tensors: Mapping[Target, Tensor]) -> list[Target]:
    """Those that hold NaN or infinity; one wait for an accelerator in all."""
    if not tensors:
        return []
    # NaN where there is one, in a third of the time of a mask.
    largest = [torch.linalg.vector_norm(tensor, math.inf) for tensor in tensors.values()]
    if len(largest) == 1:
        finite = [math.isfinite(largest[0].item())]
    else:
        home = largest[0].device
        finite = torch.stack([one.isfinite().to(home) for one in largest]).tolist()
    return [target for target, fine in zip(tensors, finite, strict=True) if not fine]


def _norms(matrices: Tensor) -> Tensor:
    dtype = working_dtype(matrices)
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=dtype)
    return norms


def _null_rtol(weight: Tensor, delta: Tensor) -> float | None:
    """From where on a direction of a difference is null; ``None`` for the default of any matrix.

    Not the tolerance of a record: that is wider in a wide matrix, and a direction that it does not
    count is still taken in a gradient.
    """
    share = difference_rtol(delta, weight)
    return min(share, 0.99) if share > 4 * torch.finfo(delta.dtype).eps else None


def _median(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.3g}" if known else "-"
