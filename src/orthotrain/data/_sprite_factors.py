"""The factors of a sprite: their classes, the values of these, and what is accepted as either."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from orthotrain.errors import ConfigError, ShapeError

FACTORS = ("color", "shape", "scale", "orientation", "x", "y")
SHAPES = ("square", "ellipse", "heart")
COLORS = ("red", "yellow", "green", "cyan", "blue", "magenta")
# Where values between the classes lie; the shape is cut into its classes.
RANGES = {
    "color": (0.0, 1.0),
    "shape": (0.0, float(len(SHAPES))),
    "scale": (0.5, 1.0),
    "orientation": (0.0, 2 * math.pi),
    "x": (0.0, 1.0),
    "y": (0.0, 1.0),
}
# A whole turn of these is the same sprite, so any number is a value.
_PERIODIC = ("color", "orientation")


def class_values(*, doubled_orientation: bool) -> dict[str, Float64[Tensor, " classes"]]:
    """Value of each class of each factor, as published; hues are ours."""
    turns = torch.linspace(0, 2 * math.pi, 40, dtype=torch.float64)
    return {
        "color": torch.arange(len(COLORS), dtype=torch.float64) / len(COLORS),
        "shape": torch.arange(len(SHAPES), dtype=torch.float64),
        "scale": torch.linspace(0.5, 1, 6, dtype=torch.float64),
        "orientation": turns if doubled_orientation else turns[:-1],
        "x": torch.linspace(0, 1, 32, dtype=torch.float64),
        "y": torch.linspace(0, 1, 32, dtype=torch.float64),
    }


def uniform_to_classes(
    uniform: Float64[Tensor, "n f"], sizes: Sequence[int]
) -> Int64[Tensor, "n f"]:
    """Class of each number in [0, 1]; one itself, where rounding may lead, is of the last."""
    count = torch.tensor(sizes, device=uniform.device)
    return torch.minimum((uniform * count).to(torch.int64), count - 1)


def uniform_to_values(
    uniform: Float64[Tensor, "n f"], names: Sequence[str]
) -> Float64[Tensor, "n f"]:
    """Value of each factor from its number in [0, 1]: linear, but for the shape."""
    ranges = torch.tensor([RANGES[name] for name in names], dtype=torch.float64)
    low, high = ranges.unbind(1)
    values = low + (high - low) * uniform
    if "shape" in names:
        column = names.index("shape")
        shape = uniform_to_classes(uniform[:, column, None], [len(SHAPES)])
        values[:, column] = shape[:, 0].to(torch.float64)
    return values


def require_within(name: str, value: int, low: int, high: int) -> None:
    """Raise ``ConfigError`` unless ``value`` is a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"Sprites: {name}={value!r} must be a whole number from {low} to {high}")


def require_factor(name: str, names: Sequence[str]) -> None:
    """Raise ``ConfigError`` unless ``name`` is one of ``names``."""
    if name not in names:
        raise ConfigError(f"Sprites: {name!r} is no factor here; need one of {', '.join(names)}")


def require_classes(
    factors: Int64[Tensor, "n f"], *, names: Sequence[str], sizes: Sequence[int]
) -> None:
    """Raise unless every entry is a class of its column's factor.

    Raises:
        ShapeError: Not two-dimensional, another number of columns, or no integers.
        ConfigError: A class does not exist.
    """
    _require_columns(factors, names)
    if not holds_integers(factors):
        raise ShapeError(
            f"Sprites: got factors of {factors.dtype}, need int64 classes; pass values to "
            "render_values"
        )
    count = torch.tensor(sizes, device=factors.device)
    wrong = ((factors < 0) | (factors >= count)).any(dim=0).tolist()
    for name, size, bad in zip(names, sizes, wrong, strict=True):
        if bad:
            raise ConfigError(f"Sprites: got a class of {name} outside 0 to {size - 1}")


def require_values(values: Float[Tensor, "n f"], *, names: Sequence[str]) -> None:
    """Raise unless every entry is a value of its column's factor.

    Raises:
        ShapeError: Not two-dimensional, or another number of columns.
        ConfigError: A value is out of its range or not finite.
    """
    _require_columns(values, names)
    if not values.isfinite().all():
        raise ConfigError("Sprites: got a NaN or infinite value; need finite values")
    for column, name in zip(values.unbind(1), names, strict=True):
        if name in _PERIODIC:
            continue
        low, high = RANGES[name]
        need, wrong = f"{low:g} to {high:g}", (column < low) | (column > high)
        if name == "shape":
            need, wrong = "0, 1 or 2", wrong | (column == high) | (column != column.floor())
        if wrong.any():
            raise ConfigError(f"Sprites: got {name}={column[wrong][0].item():g}, need {need}")


def holds_integers(a: Tensor) -> bool:
    """Whether the entries are whole numbers, of which truth values are none."""
    return not (a.is_floating_point() or a.is_complex() or a.dtype == torch.bool)


def _require_columns(factors: Tensor, names: Sequence[str]) -> None:
    if factors.ndim != 2 or factors.shape[1] != len(names):
        raise ShapeError(
            f"Sprites: got factors {tuple(factors.shape)}, need (n, {len(names)}), in the order "
            f"{', '.join(names)}"
        )
