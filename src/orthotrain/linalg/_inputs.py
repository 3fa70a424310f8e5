"""What the shapes and numbers of a kernel's tensors must be, and the errors it raises otherwise.

Each check names the function the user called, so a message can be read without a traceback.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

from orthotrain._checks import known, require_finite
from orthotrain.errors import ConfigError, ShapeError

# Looked up once: between two layers each look-up is one in memory.
_compiling, _tracing = torch.compiler.is_compiling, torch._C._get_tracing_state


def require_matrix(function: str, a: Tensor, *, name: str = "a") -> None:
    """Raise unless ``a`` is a finite ``(*batch, m, n)`` with ``m, n >= 1``."""
    require_matrix_shape(function, a, name=name)
    require_finite(function, name, a)


def require_spectrum(function: str, s: Tensor, *, name: str = "s") -> None:
    """Raise unless ``s`` is a finite, non-negative ``(*batch, k)`` with ``k >= 1``."""
    if s.ndim < 1 or s.shape[-1] == 0:
        raise ShapeError(
            f"{function} needs {name} of shape (*batch, k) with k >= 1, got {tuple(s.shape)}; "
            f"pass the singular values of a matrix, for instance torch.linalg.svdvals(a)"
        )
    require_finite(function, name, s)
    if known((s < 0).any()):
        raise ConfigError(
            f"{function} needs non-negative {name}, got a smallest value of "
            f"{float(s.min()):.3g}; eigenvalues can be negative, singular values cannot: "
            f"clamp them or take their absolute value"
        )


def require_same_shape(function: str, before: Tensor, after: Tensor) -> None:
    """Raise ShapeError unless the two tensors have one shape."""
    if before.shape != after.shape:
        raise ShapeError(
            f"{function} needs two tensors of the same shape, got before "
            f"{tuple(before.shape)} and after {tuple(after.shape)}; compare the same weight "
            f"at two times, and materialize a low-rank layer first"
        )


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 for float64, float32 for everything less.

    A measurement keeps float32 for half-precision input: a condition number above 65504 does
    not fit float16, and bfloat16 cannot tell a similarity of .994 from 1.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(a: Tensor) -> torch.autocast | nullcontext[None]:
    """A context in which autocast leaves the products of a kernel in their own precision."""
    # Asking costs a tenth of the context, which counts beside a small matrix.
    if not torch.is_autocast_enabled(a.device.type):
        return nullcontext()
    return torch.autocast(device_type=a.device.type, enabled=False)


def plain() -> bool:
    """Whether tensors are values alone: no transform, forward derivative or tracing is on."""
    return (
        peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not _compiling()
        and _tracing() is None
    )


def asks_for_transforms(error: RuntimeError) -> bool:
    """Whether torch asks for a Function with ``setup_context`` or ``jvp``: the other kind.

    It does so under ``torch.vmap`` and ``torch.func``, and in forward mode. For plain tensors such
    a Function costs 20 to 100 us more, so it is the second choice.
    """
    return "setup_context" in str(error) or "jvp function" in str(error)


def refuse_nested_forward(function: str) -> None:
    """Raise NotImplementedError in forward mode over forward mode.

    Torch runs the ``jvp`` of a Function with forward mode off, so the outer derivative would be
    zero without a word.
    """
    levels = retrieve_all_functorch_interpreters()
    if sum(level.key() == TransformType.Jvp for level in levels) > 1:
        raise NotImplementedError(
            f"{function} has no derivative in forward mode over forward mode, such as "
            f"jacfwd(jacfwd(f)) or jvp of jvp; take torch.func.hessian, which is "
            f"jacfwd(jacrev(f)), or jacrev(jacrev(f))"
        )


def require_matrix_shape(function: str, a: Tensor, *, name: str = "a") -> None:
    """Raise ShapeError unless ``a`` is ``(*batch, m, n)`` with ``m, n >= 1``."""
    if a.ndim < 2 or a.shape[-1] == 0 or a.shape[-2] == 0:
        raise ShapeError(
            f"{function} needs {name} of shape (*batch, m, n) with m, n >= 1, got "
            f"{tuple(a.shape)}; flatten a convolution weight with weight.flatten(1), and "
            f"make a vector a matrix with vector.unsqueeze(-1)"
        )


def power_of_two_scale(a: Tensor) -> Tensor:
    """Power of two per matrix, ``(*batch, 1, 1)``, with ``1 <= max|a / scale| < 2``.

    Dividing by it is exact, so squares of entries neither overflow nor vanish and nothing is
    rounded. A zero matrix gets 1. Carries no gradient.
    """
    largest = a.detach().abs().amax(dim=(-2, -1), keepdim=True)
    _, exponent = torch.frexp(largest)
    # frexp has its mantissa in [0.5, 1): one exponent less keeps 2**exponent representable.
    scale = torch.ldexp(torch.ones_like(largest), exponent - 1)
    return torch.where(largest > 0, scale, torch.ones_like(scale))
