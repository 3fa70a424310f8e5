"""Polar factor of one plain matrix, with as few calls as there can be.

At 64x27 arithmetic is half of the time, and between two layers of a network no code is in the
cache. So there is one question about the argument, one Gram matrix, one ``eigh``, one look at the
eigenvalues and one product, in a row. What that does not settle goes on from the eigenvalues.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, ParamSpec

import torch
from torch import Tensor, nn

from orthotrain.linalg._inputs import plain
from orthotrain.linalg._polar_routes import (
    BLOCKED_FROM,
    RESOLVED,
    ROWS_AT_ONCE,
    SMALL,
    Rule,
    goes_by_parts,
    gram_matrix,
    inner_factor,
    inverse_root,
    lower_gram,
    product,
    turn_small,
    unsettled,
)
from orthotrain.linalg.decompose import LinAlgError

_Args = ParamSpec("_Args")

_EPS: Final = torch.finfo(torch.float64).eps
# Half precision counts as exact, with the eps of float32.
_RESOLUTION: Final = torch.finfo(torch.float32).eps
_RTOL: Final = 4 * _RESOLUTION
_TYPES: Final = (Tensor, nn.Parameter)
_HALF: Final = (torch.bfloat16, torch.float16)
# What the lean way understands.
_SETTINGS: Final = frozenset({"method", "rtol", "complete"})
# ``Rule.least_share`` of a result in float32, and a tolerance up to which it is that.
_LEAST: Final = _EPS / _RESOLUTION
_LARGEST_RTOL: Final = 4e-5
# Up to so many entries an SVD costs less than the calls of a second Gram matrix and a refinement.
_SVD_UP_TO: Final = 2**11


def lean_way_first(door: Callable[_Args, Tensor]) -> Callable[_Args, Tensor]:
    """``polar_factor`` with the lean way in front of its checks, which take a fifth at 64x27."""

    @wraps(door)
    def polar_factor(*args: _Args.args, **kwargs: _Args.kwargs) -> Tensor:
        lean = len(args) == 1 and kwargs.keys() <= _SETTINGS
        q = _factor(args[0], **kwargs) if lean else None
        return door(*args, **kwargs) if q is None else q

    return polar_factor


def _factor(
    a: Any, method: object = "auto", rtol: object = None, complete: object = False
) -> Tensor | None:
    """The polar factor; None for what needs a closer look, wrong arguments included."""
    if type(a) not in _TYPES or not plain() or (a.requires_grad and torch.is_grad_enabled()):
        return None
    if type(method) is not str or method not in ("auto", "gram") or type(complete) is not bool:
        return None
    tolerance = _RTOL if rtol is None else rtol
    if type(tolerance) is not float or not 0 <= tolerance <= _LARGEST_RTOL:
        return None
    dtype = a.dtype
    if (dtype is torch.float32 or dtype in _HALF) and a.layout is torch.strided:
        return _of_values(a, tolerance, dtype, complete=complete, silent=method == "auto")
    return None


def _of_values(
    a: Tensor, rtol: float, dtype: torch.dtype, *, complete: bool, silent: bool
) -> Tensor | None:
    """The same for a plain tensor; None where it is no dense matrix, or has no eigenvalues."""
    try:
        shape = a.shape
        if len(shape) != 2:
            return None
        tall = shape[0] >= shape[1]
        m, n = shape if tall else shape[::-1]
        few = n < BLOCKED_FROM
        if n == 0 or (few and goes_by_parts(m, n)):
            return None
        wide = a.double()
        if few and m <= ROWS_AT_ONCE:
            gram = torch.mm(wide.t(), wide) if tall else torch.mm(wide, wide.t())
        else:
            gram = lower_gram(wide if tall else wide.t(), wide.dtype)
        eigenvalues, v = torch.linalg.eigh(gram)
        values = eigenvalues.tolist()
    except (RuntimeError, TypeError):  # the latter on a device without float64
        return None
    if values[0] > _LEAST * values[-1]:
        root = torch.mm(v * eigenvalues.rsqrt_(), v.t()) if few else inverse_root(eigenvalues, v)
        q = torch.mm(wide, root) if tall else torch.mm(root, wide)
        # A third less of a cast than ``to``.
        return q.float() if dtype is torch.float32 else q.to(dtype)
    rule = Rule("gram", wide.dtype, _RESOLUTION, rtol, complete, 0, silent)
    q = _closer(wide if tall else wide.t(), eigenvalues, v, values, rule)
    return (q if tall else q.t()).to(dtype).contiguous()


def _closer(a: Tensor, eigenvalues: Tensor, v: Tensor, values: list[float], rule: Rule) -> Tensor:
    """The factor of a tall matrix some directions of which are small or null, or not finite."""
    largest = values[-1]
    null = bisect_right(values, rule.null_share * largest)
    q = None
    if 0 < largest < math.inf and not null:
        unresolved = values[0] < RESOLVED * largest
        # Who named this route is told of an SVD, by the longer way.
        if unresolved and rule.silent and a.numel() <= _SVD_UP_TO:
            q = _by_svd(a, rule)
        else:
            q = _refined(a, v, values, rule.rtol, unresolved=unresolved)
    elif null < len(values) and values[null] > rule.least_share * largest and not rule.complete:
        q = product(a, inverse_root(eigenvalues[null:], v[:, null:]))
    return unsettled(a, eigenvalues, v, rule).q if q is None else q


def _by_svd(a: Tensor, rule: Rule) -> Tensor | None:
    """The factor from the SVD; None where that fails or a direction is null."""
    try:
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
    except LinAlgError:
        return None
    lengths = s.tolist()
    return u @ vh if lengths[-1] >= rule.rtol * lengths[0] and lengths[-1] > 0 else None


def _refined(
    a: Tensor, v: Tensor, values: list[float], rtol: float, *, unresolved: bool
) -> Tensor | None:
    """The factor of a matrix whose small directions ``v`` does not tell apart; None if none is."""
    c = product(a, v)
    if unresolved:
        turn_small(c, v, bisect_left(values, SMALL * values[-1]))
    squares = gram_matrix(c)
    d = squares.diagonal().sqrt()
    lengths = d.tolist()
    if min(lengths) < rtol * max(lengths) or not min(lengths) > 0:
        return None
    k, second_order = inner_factor(squares, d)
    return product(c, k @ v.mT) if second_order.item() <= _RESOLUTION else None
