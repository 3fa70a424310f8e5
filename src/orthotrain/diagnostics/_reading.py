"""One record of the condition monitor: what the matrices of one layer read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor

from orthotrain.diagnostics._layer_covariance import Covariance
from orthotrain.errors import ConvergenceError
from orthotrain.linalg import ConditionReadings, condition_readings
from orthotrain.linalg._gram_in_parts import LARGE
from orthotrain.linalg.condition import ConditionMethod
from orthotrain.linalg.rank import rounding_rtol
from orthotrain.methods.protocol import Record
from orthotrain.methods.targets import Target

What = Literal["covariance", "weight", "gradient", "update"]


def read_covariance(layer: str, covariance: Covariance, *, rtol: float | None) -> Record:
    """The record of what entered a layer; ``rtol`` None for what rounding explains."""
    matrices = covariance.matrices.cpu()
    rtol = covariance.rtol if rtol is None else rtol
    readings = _readings(
        matrices,
        rtol=rtol,
        symmetric=True,
        ridge=covariance.ridge,
        relative_ridge=covariance.relative_ridge,
    )
    return {
        **_record("covariance", layer, matrices, rtol, readings),
        "samples": covariance.samples,
        "input_dtype": _short(covariance.input_dtype),
    }


def read_weight(
    what: What,
    target: Target,
    tensor: Tensor,
    *,
    rtol: float | None,
    method: ConditionMethod = "auto",
    difference_from: Tensor | None = None,
) -> Record:
    """The record of a weight, or of something of its shape.

    Args:
        what: What it is.
        target: The weight, which says how the tensor is read as matrices.
        tensor: Of the weight's shape.
        rtol: None for what rounding explains.
        method: How it is decomposed, as in ``condition_readings``.
        difference_from: The weight from which ``tensor`` is a difference, and whose rounding it
            carries.
    """
    matrices = target.layout.matrices(tensor).cpu()
    dtype = target.parameter.dtype
    if rtol is None:
        eps = torch.finfo(dtype).eps
        rtol = rounding_rtol(matrices, eps=eps, difference_from=difference_from)
    if method == "auto" and dtype != torch.float64 and min(matrices.shape[-2:]) >= LARGE:
        method = "gram"  # a difference of such weights, too
    readings = _readings(matrices, rtol=rtol, method=method)
    record = _record(what, target.name, matrices, rtol, readings)
    # Of all its matrices together: the norm of a layer's weight is one number.
    norm = readings and _number(torch.linalg.vector_norm(readings.norm), torch.sum)
    route = readings and readings.method
    return {**record, "norm": norm, "dtype": _short(dtype), "route": route}


def _readings(matrices: Tensor, **settings: Any) -> ConditionReadings | None:
    """``None`` where there are no numbers to read."""
    if not bool(matrices.isfinite().all()):
        return None
    try:
        return condition_readings(matrices, **settings)
    except ConvergenceError:
        return None


def _record(
    what: What, layer: str, matrices: Tensor, rtol: float, readings: ConditionReadings | None
) -> Record:
    count = matrices.shape[0]
    size = min(matrices.shape[-2:])
    if readings is None:
        fields = dict.fromkeys(_NUMBERS)
        worst = fields
    else:
        fields = {key: _number(_of(readings, name), torch.median) for key, name in _NUMBERS.items()}
        worst = {
            key: _number(_of(readings, _NUMBERS[key]), torch.min if key == "rank" else torch.max)
            for key in _WORST
        }
    return {
        "what": what,
        "layer": layer,
        "rank": fields["rank"],
        "size": size,
        "rtol": rtol,
        **{key: fields[key] for key in _NUMBERS if key not in ("rank", "norm")},
        "norm": fields["norm"],
        "dtype": _short(matrices.dtype),
        "matrices": count,
        **({f"worst_{key}": worst[key] for key in _WORST} if count > 1 else {}),
    }


_NUMBERS: Final = {
    "rank": "rank",
    "condition_range": "on_range",
    "condition_ridge": "with_ridge",
    "condition_float32": "naive_float32",
    "condition_float64": "naive_float64",
    "largest": "largest",
    "ridge": "ridge",
    "norm": "norm",
}
_WORST: Final = ("rank", "condition_range", "condition_ridge")


def _of(readings: ConditionReadings, name: str) -> Tensor | None:
    values: Tensor | None = getattr(readings, name)
    if name == "with_ridge" and values is not None and readings.ridge is not None:
        # Without a ridge there is no such reading.
        return values if bool((readings.ridge > 0).any()) else None
    return values


def _number(values: Tensor | None, pick: Any) -> float | int | None:
    """One plain number of several; ``None`` for none and for infinity."""
    if values is None:
        return None
    number: float | int = pick(values).item()
    return number if math.isfinite(number) else None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def in_words(records: Sequence[Record]) -> str:
    """A sentence on the record with the worst condition on the range."""
    worst = max(records, key=lambda r: _or_infinite(r["condition_range"]))
    of = f", worst of {len(records)}" if len(records) > 1 else ""
    parts = [
        f"rank {worst['rank']} of {worst['size']} at rtol {worst['rtol']:.1e}",
        f"{_or_infinite(worst['condition_range']):.2g} on the range",
    ]
    if worst["condition_ridge"] is not None:
        parts.append(f"{worst['condition_ridge']:.2g} with the ridge {worst['ridge']:.2g}")
    name = worst["layer"] or "(model)"
    return f"condition of the {worst['what']} of {name}{of}, step {worst['step']}: " + ", ".join(
        parts
    )


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value
