"""Which matrices have a root: settings, negative and null eigenvalues, and the ridge."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from orthotrain.errors import ConfigError, NotPositiveDefiniteError
from orthotrain.linalg._inputs import refuse_nested_forward
from orthotrain.linalg._root_forward import DEFAULT_ITERATIONS
from orthotrain.linalg._symmetric import eigh_each, rounding, symmetric_part

RootMethod = Literal["auto", "eigh", "newton_schulz", "polar_express", "mpa", "mtp"]
RootGradient = Literal["exact", "lyapunov", "newton_schulz"]


def require_root_settings(function: str, method: Any, gradient: Any, iterations: Any) -> None:
    """Raise ConfigError for a method, derivative or number of steps that cannot work.

    Args:
        function: Who says so in the message; a layer asks before it has a matrix.
        method: One of ``RootMethod``.
        gradient: One of ``RootGradient``, and one that fits the method.
        iterations: None, or at least one step of a method that iterates.
    """
    if gradient == "newton_schulz" and method != "newton_schulz":
        raise ConfigError(
            f"{function} needs method='newton_schulz' for gradient='newton_schulz', got "
            f"method={method!r}; this gradient is autograd through the steps of that method"
        )
    if iterations is None:
        return
    whole = isinstance(iterations, int) and not isinstance(iterations, bool)
    if method not in DEFAULT_ITERATIONS or not whole or iterations < 1:
        raise ConfigError(
            f"{function} needs iterations as a whole number of at least 1, and method="
            f"{' or '.join(DEFAULT_ITERATIONS)}, got iterations={iterations!r} with "
            f"method={method!r}; leave iterations out, or choose a method that iterates"
        )


class RootPlan(NamedTuple):
    """A call of ``spd_sqrt`` or ``spd_inv_sqrt``, its settings checked.

    Attributes:
        function: Name of the function that the user called.
        dtype: Whose rounding the input carries: its own dtype, or a coarser one it was stored in.
        method: How the root is computed; no longer ``"auto"``.
        gradient: How its derivative is.
        ridge: Added to every eigenvalue.
        relative_ridge: Times the mean eigenvalue, added to every eigenvalue, too.
        iterations: Of ``"newton_schulz"`` and ``"polar_express"``.
    """

    function: str
    dtype: torch.dtype
    method: RootMethod
    gradient: RootGradient
    ridge: float
    relative_ridge: float
    iterations: int

    @property
    def inverse(self) -> bool:
        """Whether the inverse root is wanted."""
        return self.function == "spd_inv_sqrt"

    def shift(self, mean: Tensor) -> Tensor | float:
        """What is added to the eigenvalues of matrices with these mean eigenvalues."""
        if not self.relative_ridge:
            return self.ridge
        return self.ridge + self.relative_ridge * mean.clamp(min=0)


def carried_dtype(function: str, a: Tensor, rounded_to: torch.dtype | None) -> torch.dtype:
    """The dtype whose rounding ``a`` carries: the coarser of its own and ``rounded_to``."""
    if rounded_to is None:
        return a.dtype
    if not (isinstance(rounded_to, torch.dtype) and rounded_to.is_floating_point):
        raise ConfigError(
            f"{function} needs rounded_to to be a floating-point dtype that a was stored in, got "
            f"{rounded_to!r}; leave it out if a was never stored in another dtype than {a.dtype}"
        )
    return max(a.dtype, rounded_to, key=lambda dtype: torch.finfo(dtype).eps)


def singular_rtol(dtype: torch.dtype, work: torch.dtype) -> float:
    """Eigenvalues up to this share of the largest are rounding, not numbers.

    Measured null eigenvalues of singular covariances, 8x8 to 256x256: up to .75 eps for float32
    decomposed in float64, up to 2 eps where input and work are float64.
    """
    return 2 * torch.finfo(dtype).eps + 4 * torch.finfo(work).eps


def positive_values(raw: Tensor, plan: RootPlan) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues with the ridge, and which of them are null; None if none is.

    Args:
        raw: ``(*batch, n)`` ascending, without the ridge.
        plan: The call.

    Raises:
        NotPositiveDefiniteError: An eigenvalue is negative beyond rounding, or too small for an
            inverse root.
    """
    shift = plan.shift(raw.mean(dim=-1, keepdim=True)) if plan.relative_ridge else plan.ridge
    values = raw + shift if plan.ridge or plan.relative_ridge else raw
    limit = singular_rtol(plan.dtype, raw.dtype)
    if bool((values[..., 0] > limit * values[..., -1]).all()):
        return values, None
    return _repaired(raw, values, torch.as_tensor(shift).to(raw), plan)


def _repaired(
    raw: Tensor, values: Tensor, shift: Tensor, plan: RootPlan
) -> tuple[Tensor, Tensor | None]:
    """Rounding of both signs taken out of eigenvalues, matrix by matrix."""
    limit = singular_rtol(plan.dtype, raw.dtype)
    low, high = values[..., :1], values[..., -1:]
    noise = rounding(plan.dtype) * math.sqrt(raw.shape[-1])
    size = torch.maximum(high, -low)
    singular = ~(low > limit * high)
    # With a ridge, what is rounding alone is zero before the ridge is added.
    semidefinite = raw[..., :1] >= -noise * torch.maximum(raw[..., -1:], -raw[..., :1])
    floor = torch.where(singular & semidefinite, shift, 0.0)
    beyond_repair = ~(semidefinite & (shift > 0))
    bad = singular & beyond_repair if plan.inverse else ~(low >= -noise * size)
    if bool(bad.any()):
        _raise_not_definite(values, bad, shift, plan)
    values = torch.maximum(values, floor)
    return values, None if plan.inverse else values <= limit * high


def _raise_not_definite(values: Tensor, bad: Tensor, shift: Tensor, plan: RootPlan) -> None:
    rows = values[bad.squeeze(-1)].detach().cpu().double()
    worst = rows[rows[:, 0].argmin()]
    lowest, largest = float(worst[0]), float(worst.abs().max())
    given = float(shift.max())
    limit = singular_rtol(plan.dtype, values.dtype)
    ridge = given + 1.1 * max(-lowest, 0.0) + 16 * limit * largest
    need = "definite" if plan.inverse else "semi-definite"
    advice = f"add a ridge, for instance ridge={ridge:.2g}" if ridge else "give a ridge > 0"
    raise NotPositiveDefiniteError(
        f"{plan.function} needs a positive {need} matrix, got {len(rows)} of "
        f"{bad.numel()} with smallest eigenvalue {lowest:.3g} at a Frobenius norm of "
        f"{float(worst.norm()):.3g}; {advice}, or look at how the matrix was made"
    )


class PreparedMatrix(torch.autograd.Function):
    """The symmetric part plus the ridge, for the methods that see no eigenvalues.

    Checked by a Cholesky decomposition; where that fails, eigenvalues decide, and those within
    rounding of zero are set to it.
    """

    @staticmethod
    def forward(a: Tensor, plan: RootPlan) -> Tensor:
        """``P``, positive definite; for the square root, semi-definite."""
        symmetric = symmetric_part(plan.function, a, dtype=plan.dtype)
        mean = symmetric.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        p = symmetric + plan.shift(mean) * eye
        size = p.abs().amax(dim=(-2, -1), keepdim=True) * a.shape[-1]
        limit = singular_rtol(plan.dtype, a.dtype)
        _, info = torch.linalg.cholesky_ex(p - limit * size * eye)
        if not bool((info == 0).all()):
            raw, vectors = eigh_each(plan.function, symmetric)
            values, _ = positive_values(raw, plan)
            repaired = (vectors * values.unsqueeze(-2)) @ vectors.mT
            changed = (values != raw + plan.shift(mean.squeeze(-1))).any(dim=-1)
            p = torch.where(changed[..., None, None], (repaired + repaired.mT) / 2, p)
        return p

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, RootPlan], output: Tensor) -> None:
        """Keep the settings; no tensor is needed."""
        ctx.plan = inputs[1]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, None]:
        """Through the symmetric part and the ridge."""
        symmetric = (g + g.mT) / 2
        return with_ridge_gradient(symmetric, ctx.plan), None  # type: ignore[attr-defined]

    @staticmethod
    def jvp(ctx: object, da: Tensor, _: None) -> Tensor:
        """The same linear map, which is its own adjoint."""
        refuse_nested_forward(ctx.plan.function)  # type: ignore[attr-defined]
        return with_ridge_gradient((da + da.mT) / 2, ctx.plan)  # type: ignore[attr-defined]

    @staticmethod
    def vmap(
        info: object, in_dims: tuple[Any, ...], a: Tensor, plan: RootPlan
    ) -> tuple[Tensor, int]:
        """One more batch dimension."""
        p: Tensor = PreparedMatrix.apply(a.movedim(in_dims[0], 0), plan)  # type: ignore[no-untyped-call]
        return p, 0


def with_ridge_gradient(x: Tensor, plan: RootPlan) -> Tensor:
    """The gradient at ``a`` from that with its ridge, since a relative ridge moves with ``a``."""
    if not plan.relative_ridge:
        return x
    mean = x.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return x + plan.relative_ridge * mean * eye
