"""Square root and inverse square root of symmetric positive (semi-)definite matrices."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

from orthotrain.errors import ConfigError, NotPositiveDefiniteError, NumericalWarning
from orthotrain.linalg._inputs import without_autocast
from orthotrain.linalg._root_backward import exact_gradient
from orthotrain.linalg._symmetric import eigh_each, require_square, rounding, symmetric_part
from orthotrain.linalg.decompose import working_dtype

RootMethod = Literal["auto", "eigh", "newton_schulz", "polar_express", "mpa", "mtp"]
RootGradient = Literal["exact", "lyapunov", "newton_schulz"]


def spd_sqrt(
    a: Float[Tensor, "*batch n n"],
    *,
    method: RootMethod = "auto",
    gradient: RootGradient = "exact",
    ridge: float = 0.0,
    relative_ridge: float = 0.0,
    iterations: int | None = None,
) -> Float[Tensor, "*batch n n"]:
    """Symmetric square root ``S`` with ``S S = a + ridge``."""
    return _root(a, _plan("spd_sqrt", method, gradient, ridge, relative_ridge, iterations))


def spd_inv_sqrt(
    a: Float[Tensor, "*batch n n"],
    *,
    method: RootMethod = "auto",
    gradient: RootGradient = "exact",
    ridge: float = 0.0,
    relative_ridge: float = 0.0,
    iterations: int | None = None,
) -> Float[Tensor, "*batch n n"]:
    """Symmetric inverse square root ``Z`` with ``Z (a + ridge) Z = 1``."""
    return _root(a, _plan("spd_inv_sqrt", method, gradient, ridge, relative_ridge, iterations))


@dataclass(frozen=True)
class _Plan:
    function: str
    method: RootMethod
    gradient: RootGradient
    ridge: float
    relative_ridge: float
    iterations: int | None

    @property
    def inverse(self) -> bool:
        return self.function == "spd_inv_sqrt"


def _plan(
    function: str,
    method: RootMethod,
    gradient: RootGradient,
    ridge: float,
    relative_ridge: float,
    iterations: int | None,
) -> _Plan:
    for name, value in (("ridge", ridge), ("relative_ridge", relative_ridge)):
        if not 0 <= value < math.inf:
            raise ConfigError(
                f"{function} needs a finite {name} >= 0, got {value}; it is added to the "
                f"eigenvalues, 0 leaves them as they are"
            )
    if method not in get_args(RootMethod):
        raise ConfigError(
            f"{function} needs method to be one of {', '.join(get_args(RootMethod))}, got "
            f"{method!r}; 'auto' is right unless you compare methods"
        )
    return _Plan(function, method, gradient, ridge, relative_ridge, iterations)


def _root(a: Tensor, plan: _Plan) -> Tensor:
    require_square(plan.function, a)
    with without_autocast(a):
        work = a.to(working_dtype(a))
        root, _, _ = _EighRoot.apply(work, a.dtype, plan)  # type: ignore[no-untyped-call]
    result: Tensor = root.to(a.dtype)
    return result


class _EighRoot(torch.autograd.Function):
    """Root by eigenvalues and eigenvectors, with the exact derivative in their basis."""

    @staticmethod
    def forward(a: Tensor, dtype: torch.dtype, plan: _Plan) -> tuple[Tensor, Tensor, Tensor]:
        symmetric = symmetric_part(plan.function, a, a.dtype)
        values, vectors = eigh_each(plan.function, symmetric)
        values = _shifted(values, dtype, plan)
        s = values.sqrt()
        scale = 1 / s if plan.inverse else s
        root = (vectors * scale.unsqueeze(-2)) @ vectors.mT
        null = values <= singular_rtol(dtype, a.dtype) * values[..., -1:]
        return root, vectors, torch.where(null, 0.0, s)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, torch.dtype, _Plan], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        ctx.plan = inputs[-1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        plan: _Plan = ctx.plan
        root, vectors, s = ctx.saved_tensors
        _warn_where_null(plan, s)
        x = exact_gradient(g, root, vectors, s, inverse=plan.inverse)
        if plan.relative_ridge:
            mean = x.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
            x = x + plan.relative_ridge * mean * torch.eye(x.shape[-1]).to(x)
        return x, None, None


def singular_rtol(dtype: torch.dtype, work: torch.dtype) -> float:
    """Eigenvalues up to this share of the largest cannot be told from zero.

    Measured null eigenvalues of singular covariances, 8x8 to 256x256: up to .75 eps in float32
    input decomposed in float64, up to 2 eps where input and work are float64.
    """
    return 2 * torch.finfo(dtype).eps + 4 * torch.finfo(work).eps


def _shifted(raw: Tensor, dtype: torch.dtype, plan: _Plan) -> Tensor:
    """Eigenvalues with the ridge, non-negative; raises where they cannot be made so."""
    shift: Tensor | float = plan.ridge
    if plan.relative_ridge:
        shift = shift + plan.relative_ridge * raw.mean(dim=-1, keepdim=True).clamp(min=0)
    values = raw + shift
    noise = rounding(dtype) * math.sqrt(raw.shape[-1])
    largest = torch.maximum(values[..., -1:], -values[..., :1])
    bad = ~(values[..., :1] >= -noise * largest)
    if plan.inverse:
        semidefinite = raw[..., :1] >= -noise * raw[..., -1:]
        values = torch.where(semidefinite, values.clamp(min=shift / 2), values)
        bad = bad | ~(values[..., :1] > singular_rtol(dtype, raw.dtype) * largest) & (
            ~semidefinite | (torch.as_tensor(shift) <= 0)
        )
    if bool(bad.any()):
        raise NotPositiveDefiniteError(
            f"{plan.function} needs a positive definite matrix, got {float(values.min())}; "
            f"add a ridge"
        )
    return values.clamp(min=0)


def _warn_where_null(plan: _Plan, s: Tensor) -> None:
    if not plan.inverse and bool((s[..., 0] == 0).any()):
        warnings.warn(
            f"{plan.function}: the derivative does not exist at a singular matrix",
            NumericalWarning,
            stacklevel=2,
        )
