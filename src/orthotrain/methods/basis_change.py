r"""How each kind of optimizer state follows a change of basis: names and tensors in and out.

A weight ``w`` that becomes ``core = left^T w right`` takes its optimizer state with it:

============ =========================================== ====================================
in the       what                                        becomes
gradient
============ =========================================== ====================================
linear       momentum, first moments                     ``left^T x right``
copy         averages and copies of the parameter        ``left^T x right``
quadratic    second moments and their sums               ``(left*left)^T x (right*right)``
step size    Rprop's step sizes, Adadelta's mean of      as quadratic: columns of ``left*left``
             squared steps                               sum to one, so this is an average
magnitude    Adamax's infinity norm                      root of the quadratic rule on
                                                         ``x*x``
factored     Adafactor's means of rows and columns       the quadratic rule on their product,
                                                         factored again
============ =========================================== ====================================

This is the table of a weight that keeps its bases frozen. With trained bases it becomes a pair
of factors, by the same kinds and the formulas of ``pair_change.py``.

A name that is not listed below is judged by its values: without a negative entry it is taken
for a second moment, else for linear. Of 131 optimizers that were tried, rotating everything
linearly leaves 92 working; the quadratic rule for non-negative tensors makes that 104, and
restarting a parameter's state where a tensor has an unknown shape 117.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg._inputs import result_dtype
from orthotrain.linalg.decompose import working_dtype

MovingMode = Literal["rotate", "slice"]
Kind = Literal["linear", "copied", "squared", "averaged", "magnitude"]
Rule = Literal["linear", "copied", "squared", "averaged"]

_LINEAR = (
    "momentum_buffer",  # SGD, RMSprop, Muon
    "exp_avg",  # Adam, AdamW, Adamax, NAdam, RAdam, LAMB, Lion
    "grad_avg",  # RMSprop, centered
    "prev",  # Rprop: the last gradient
    "exp_avg_slow",  # AdEMAMix
    "exp_avg_diff",  # Adan
    "neg_pre_grad",  # Adan
)
_COPIED = (
    "ax",  # ASGD: average of the parameter
    "z",  # schedule-free: the parameter before averaging
    "slow_buffer",  # Lookahead: copy of the parameter, under each library's name
    "lookahead_slow_buff",
    "slow_params",
    "slow_param",
    "cached_params",
    "old_p",  # SAM: the parameter before it was moved uphill
)
_SQUARED = (
    "exp_avg_sq",  # Adam, AdamW, NAdam, RAdam
    "max_exp_avg_sq",  # Adam, AdamW with amsgrad
    "square_avg",  # RMSprop, Adadelta
    "sum",  # Adagrad
    "exp_avg_var",  # AdaBelief
    "max_exp_avg_var",  # AdaBelief with amsgrad
)
_AVERAGED = (
    "acc_delta",  # Adadelta: mean of squared steps
    "step_size",  # Rprop
)
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_LINEAR, "linear"),
    **dict.fromkeys(_COPIED, "copied"),
    **dict.fromkeys(_SQUARED, "squared"),
    **dict.fromkeys(_AVERAGED, "averaged"),
    "exp_inf": "magnitude",  # Adamax
}


class _Factors(NamedTuple):
    """Keys of a factored second moment; ``kept`` says if the mean keeps a dimension of one."""

    row: str
    col: str
    kept: bool


_FACTORS = (
    _Factors("row_var", "col_var", True),  # torch.optim.Adafactor
    _Factors("exp_avg_sq_row", "exp_avg_sq_col", False),  # Adafactor elsewhere, CAME
    _Factors("exp_avg_res_row", "exp_avg_res_col", False),  # CAME
)


class CoordinateChange(ABC):
    """How tensors in the shape of a parameter follow it into new coordinates.

    An old tensor is seen as ``before``: a convolution's ``(out, in/groups, *kernel)`` collapses
    to ``(out, n)``, and rows fall into equal blocks for groups or packed projections.
    """

    @property
    @abstractmethod
    def before(self) -> tuple[int, ...]:
        """Shape in the old coordinates, with a leading dimension per block where there are any."""

    @property
    @abstractmethod
    def after(self) -> tuple[int, ...]:
        """Shape in the new coordinates."""

    @abstractmethod
    def moved(self, x: Tensor, rule: Rule) -> Tensor:
        """``x`` in the new coordinates, in float32 or more; autograd and autocast are off.

        Args:
            x: Any shape that ``fits``.
            rule: What ``x`` is: linear in the gradient, a copy of the parameter, quadratic in the
                gradient, or a size of steps, which is averaged.
        """

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape is one matrix per block in the old coordinates."""
        *groups, m, n = self.before
        if tuple(shape) == self.before:
            return True
        return len(shape) > 1 and shape[0] == math.prod(groups) * m and math.prod(shape[1:]) == n

    def linear(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*g p q"]:
        """What is linear in the gradient, in the new coordinates.

        Args:
            x: Any shape that ``fits``. Multiplied in float32 (float64 stays): right to 1e-6 of
                the largest entry. Returned contiguous in the dtype and on the device of ``x``,
                without a graph.
        """
        return self.by_rule(x, "linear")

    def squared(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*g p q"]:
        """What is quadratic in the gradient; never negative where ``x`` is not.

        For gradient entries of mean zero that are uncorrelated this is the second moment of the
        gradient in the new coordinates.

        Args:
            x: As for ``linear``.
        """
        return self.by_rule(x, "squared")

    @torch.no_grad()
    def by_rule(self, x: Tensor, rule: Rule) -> Tensor:
        """``moved``, rounded once to the dtype of ``x``."""
        with torch.autocast(x.device.type, enabled=False):
            return self.moved(x, rule).to(x.dtype).contiguous()

    def leading(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*g p q"]:
        """The leading block of each old matrix, for changes that have one."""
        raise ConfigError(
            f"{type(self).__name__} has no leading block to keep, so optimizer state cannot be "
            'sliced; choose mode "rotate" or "reset"'
        )


@dataclass(frozen=True, eq=False)
class BasisChange(CoordinateChange):
    """New coordinates of a matrix: ``x`` becomes ``left^T x right``.

    The switch from a dense weight to its core has ``left=u, right=vh.mT``; a rank update whose
    core decomposes as ``p @ diag(s) @ qh`` has ``left=p[:, :k], right=qh.mT[:, :k]``. An old
    tensor is seen as ``(*g, m, n)``: a convolution's ``(out, in/groups, *kernel)`` collapses to
    ``(out, n)``, and rows fall into ``g`` equal blocks for groups or packed projections.

    Attributes:
        left: ``(*g, m, p)`` with orthonormal columns, any floating dtype and device.
        right: ``(*g, n, q)`` with orthonormal columns.

    Raises:
        ShapeError: Fewer than two dimensions, or leading dimensions that differ.
    """

    left: Float[Tensor, "*g m p"]
    right: Float[Tensor, "*g n q"]

    def __post_init__(self) -> None:
        left, right = tuple(self.left.shape), tuple(self.right.shape)
        if len(left) < 2 or len(right) < 2 or left[:-2] != right[:-2]:
            raise ShapeError(
                "BasisChange needs left (*g, m, p) and right (*g, n, q) with the same *g, "
                f"got {left} and {right}; stack one matrix per group"
            )

    @property
    def before(self) -> tuple[int, ...]:
        """Shape ``(*g, m, n)`` in the old coordinates."""
        return (*self.left.shape[:-1], self.right.shape[-2])

    @property
    def after(self) -> tuple[int, ...]:
        """Shape ``(*g, p, q)`` in the new coordinates."""
        return (*self.left.shape[:-2], self.left.shape[-1], self.right.shape[-1])

    def moved(self, x: Tensor, rule: Rule) -> Tensor:
        """``left^T x right``; of squares ``(left*left)^T x (right*right)``, which averages."""
        left, right = (f.to(x.device, result_dtype(x.dtype)) for f in (self.left, self.right))
        if rule in ("squared", "averaged"):
            left, right = left.square(), right.square()
        return left.mT @ x.to(left.dtype).reshape(self.before) @ right

    def leading(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*g p q"]:
        """The leading ``p x q`` block of each old matrix, not rotated."""
        p, q = self.after[-2:]
        block = x.detach().reshape(self.before)[..., :p, :q]
        return block.clone(memory_format=torch.contiguous_format)


def unknown_entries(state: Mapping[str, Any], change: CoordinateChange) -> list[str]:
    """Entries no rule covers, each with its key, shape and dtype or its type."""
    factors = {key for f in _factors_in(state, change) for key in (f.row, f.col)}
    return [
        f"{key!r} {described(value)}"
        for key, value in state.items()
        if key not in factors and not _moves(value, change) and not is_shapeless(value)
    ]


def moved_entries(
    state: Mapping[str, Any],
    change: CoordinateChange,
    *,
    new_shape: Sequence[int],
    mode: MovingMode,
    unlisted: Kind = "squared",
) -> dict[str, Tensor]:
    """The entries of one parameter's state that have its shape, in new coordinates.

    Args:
        state: One parameter's state, without unknown entries; it is left as it is.
        change: From the old coordinates to the new ones.
        new_shape: Shape of the parameter now.
        mode: ``"rotate"`` follows the table above, ``"slice"`` keeps the leading block.
        unlisted: What an entry without a negative value is taken for where its name is not listed;
            ``"copied"`` for all such entries of a wrapper, whose like keep copies.
    """
    new: dict[str, Tensor] = {}
    for f in _factors_in(state, change):
        moment = _factored_moment(*_as_columns(state, f))
        moment = _moved(moment, "squared", change, mode).reshape(new_shape)
        new[f.row] = moment.mean(-1, keepdim=f.kept)
        new[f.col] = moment.mean(-2, keepdim=f.kept)
    for key, value in state.items():
        if key not in new and _moves(value, change):
            new[key] = _moved(value, _kind(key, value, unlisted), change, mode).reshape(new_shape)
    if mode == "rotate" and "square_avg" in new and "grad_avg" in new:
        _keep_variance(new, state, change)
    return new


@torch.no_grad()
def _keep_variance(
    new: dict[str, Tensor], state: Mapping[str, Tensor], change: CoordinateChange
) -> None:
    """Centered RMSprop takes the root of ``square_avg - grad_avg^2``: rotate that difference.

    Rotated one by one the mean outgrows the second moment wherever gradients keep their
    direction, and the next step is NaN. The margin of 4 eps covers the rounding of both terms.
    """
    spread = (state["square_avg"] - state["grad_avg"].square()).clamp_min(0)
    mean = new["grad_avg"]
    margin = 1 + 4 * torch.finfo(mean.dtype).eps
    new["square_avg"] = change.squared(spread).reshape(mean.shape) + margin * mean.square()


def _moved(x: Tensor, kind: Kind, change: CoordinateChange, mode: MovingMode) -> Tensor:
    if mode == "slice":
        return change.leading(x)
    match kind:
        case "linear" | "copied" | "squared" | "averaged":
            return change.by_rule(x, kind)
        case "magnitude":
            precise = x.to(working_dtype(x))  # the square of a float32 underflows below 1e-22
            return change.squared(precise.square()).sqrt().to(x.dtype)
        case _ as unreachable:
            assert_never(unreachable)


def _kind(key: str, x: Tensor, unlisted: Kind) -> Kind:
    """By name, else by sign: a tensor with a negative entry is no second moment."""
    kind = _KINDS.get(key, unlisted)
    return kind if kind in ("linear", "copied") or bool((x >= 0).all()) else "linear"


def _moves(value: object, change: CoordinateChange) -> bool:
    """A plain floating tensor in the old shape; subclasses (quantized, sharded) are not."""
    return (
        isinstance(value, Tensor)
        and type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.is_floating_point()
        and change.fits(value.shape)
    )


def is_shapeless(value: object) -> bool:
    """Whether a value has no shape to follow: numbers, one-element tensors, nests of these."""
    match value:
        case Tensor():
            return value.numel() <= 1
        case Mapping():
            return all(is_shapeless(v) for v in value.values())
        case list() | tuple():
            return all(is_shapeless(v) for v in value)
        case _:
            return value is None or isinstance(value, bool | int | float | complex | str)


def described(value: object) -> str:
    """An entry of a state in words: shape and dtype, or its type."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"of type {type(value).__name__}"


def _factors_in(state: Mapping[str, Any], change: CoordinateChange) -> list[_Factors]:
    """Factored second moments whose product has the old shape."""
    found = []
    for f in _FACTORS:
        if isinstance(state.get(f.row), Tensor) and isinstance(state.get(f.col), Tensor):
            row, col = _as_columns(state, f)
            matching = row.shape[:-2] == col.shape[:-2] and row.shape[-1:] == col.shape[-2:-1]
            if matching and change.fits((*row.shape[:-1], *col.shape[-1:])):
                found.append(f)
    return found


def _as_columns(state: Mapping[str, Tensor], f: _Factors) -> tuple[Tensor, Tensor]:
    """Means of rows as ``(..., m, 1)`` and of columns as ``(..., 1, n)``."""
    row, col = state[f.row], state[f.col]
    return (row, col) if f.kept else (row.unsqueeze(-1), col.unsqueeze(-2))


@torch.no_grad()
def _factored_moment(row: Tensor, col: Tensor) -> Tensor:
    """The second moment that Adafactor takes its row and column means to stand for."""
    mean = row.mean(-2, keepdim=True)
    return row * (col / mean.clamp_min(torch.finfo(mean.dtype).tiny))


def expected_shapes(shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The shape each known key has beside a parameter of this shape."""
    full = tuple(shape)
    shapes = dict.fromkeys((*_KINDS, "variance"), full)  # variance: Adafactor's for vectors
    if len(full) > 1:
        for f in _FACTORS:
            one = (1,) if f.kept else ()
            shapes[f.row] = (*full[:-1], *one)
            shapes[f.col] = (*full[:-2], *one, full[-1])
    return shapes
