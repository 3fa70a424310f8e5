"""The checks of arguments, each once: tensors, counts, shares and numbers.

Every message names the function that was called, what it needs, what it got and what to try. None
of them reads the values of a tensor but :func:`require_finite`.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from orthotrain.errors import ConfigError, NonFiniteError

REAL_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
WHOLE_DTYPES = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def is_dense(value: object, dtypes: frozenset[torch.dtype] | None = REAL_DTYPES) -> bool:
    """Whether ``value`` is a dense tensor of one of ``dtypes``; ``None`` takes every dtype."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        # The layout of a nested tensor may be strided, too.
        and not value.is_nested
        and (dtypes is None or value.dtype in dtypes)
    )


def require_tensor(
    function: str,
    name: str,
    value: object,
    dtypes: frozenset[torch.dtype] | None = REAL_DTYPES,
) -> None:
    """Raise ConfigError unless ``value`` is a dense tensor of one of ``dtypes``.

    Args:
        function: Who asks, for the message.
        name: The argument, for the message.
        value: What was given.
        dtypes: What it may hold; ``None`` takes everything.
    """
    if is_dense(value, dtypes):
        return
    if not isinstance(value, Tensor):
        raise ConfigError(
            f"{function} needs {name} to be a torch tensor, got {described(value)}; "
            f"{_way_to_tensor(name, value)}"
        )
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else "sparse"
        way = "to_padded_tensor(0.0)" if value.is_nested else "to_dense()"
        raise ConfigError(
            f"{function} needs {name} to be a dense tensor, got a {kind} one of layout "
            f"{value.layout}; convert it with {name}.{way}"
        )
    assert dtypes is not None
    kind, way = _kind_of(dtypes)
    pixels = "; bytes of images become [0, 1] by x / 255" if value.dtype == torch.uint8 else ""
    raise ConfigError(
        f"{function} needs a {kind} tensor, got {name} of dtype {value.dtype}; convert it first, "
        f"for instance with {name}.to({way}){pixels}"
    )


def require_values(function: str, name: str, value: Tensor) -> None:
    """Raise ConfigError for a tensor on the meta device, which holds no numbers to look at."""
    if value.is_meta:
        raise ConfigError(
            f"{function} needs {name} with values, got a tensor of shape {tuple(value.shape)} on "
            f"the meta device, which holds none; move the model with to_empty and give it values"
        )


def _kind_of(dtypes: frozenset[torch.dtype]) -> tuple[str, str]:
    """What tensors of these dtypes hold, and one of them."""
    if dtypes == REAL_DTYPES:
        return "real floating-point", "torch.float32"
    if dtypes == WHOLE_DTYPES:
        return "whole-number", "torch.int64"
    names = sorted(map(str, dtypes))
    return " or ".join(names), names[0]


def _way_to_tensor(name: str, value: object) -> str:
    if value is None:
        return f"give {name} a value"
    if isinstance(value, list | tuple):
        return f"make one with torch.tensor({name}), or torch.stack({name}) out of tensors"
    if isinstance(value, Real) or hasattr(value, "__array__"):
        return f"make one with torch.as_tensor({name})"
    return "pass the numbers as a torch.Tensor"


def described(value: object) -> str:
    """A value in a few words: its type, and itself where it is short."""
    if isinstance(value, Tensor):
        return f"a tensor of dtype {value.dtype} and shape {tuple(value.shape)}"
    kind = type(value)
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str | bytes):
        return repr(value[:60])
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    article = "an" if (module or kind.__qualname__)[0] in "aeiou" else "a"
    return f"{article} {module}{kind.__qualname__}"


def require_finite(function: str, name: str, a: Tensor) -> None:
    """Raise NonFiniteError if ``a`` holds NaN or infinity."""
    require_values(function, name, a)
    # Both ends are NaN where there is one. A mask of the tensor takes twelve times as long.
    if a.numel() == 0:
        return
    low, high = torch.aminmax(a.detach())
    try:
        finite = bool(torch.isfinite(low) & torch.isfinite(high))
    except RuntimeError:  # under torch.vmap nobody can know
        return
    if finite:
        return
    nans = int(torch.isnan(a).sum())
    infinities = int(torch.isinf(a).sum())
    raise NonFiniteError(
        f"{function} needs finite numbers, got {nans} NaN and {infinities} infinite of "
        f"{a.numel()} in {name} of shape {tuple(a.shape)}; find the step that made them "
        f"(torch.autograd.detect_anomaly helps) or skip this tensor"
    )


def known(flag: Tensor) -> bool:
    """A flag, read; false where nobody can know: under ``torch.vmap``, on the meta device.

    Never read while a graph is compiled or exported, which it would break.
    """
    if torch.compiler.is_compiling():
        return False
    try:
        return bool(flag)
    except RuntimeError:
        return False


def require_steps(owner: str, name: str, value: object, *, least: int = 1) -> None:
    """Raise ConfigError unless ``value`` is a whole number of steps, ``least`` or more.

    Args:
        owner: Who has the setting, for the message.
        name: The setting, for the message.
        value: What was given.
        least: The smallest count that makes sense.
    """
    require_count(owner, name, value, "optimizer steps", least=least)


def require_count(owner: str, name: str, value: object, what: str = "", *, least: int = 1) -> None:
    """Raise ConfigError unless ``value`` is a whole number, ``least`` or more, of ``what``.

    Truth values and floating-point numbers are refused, whole ones, too: a method that acts
    every 1.5 steps would act at steps 3 and 6, and one that acts every NaN steps never.
    """
    of = f" of {what}" if what else ""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(
            f"{owner} needs {name} to be a whole number{of}, {least} or more, got "
            f"{described(value)}; round a computed one with int(...)"
        )


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number; truth values and NaN are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def require_number(
    owner: str,
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """Raise ConfigError unless ``value`` is a finite number within the bounds.

    Args:
        owner: Who has the setting, for the message.
        name: The setting, for the message.
        value: What was given.
        above: It must be larger than this.
        least: It must not be smaller than this.
        most: It must not be larger than this.
    """
    number = float(value) if is_number(value) else math.nan  # type: ignore[arg-type]
    holds = (
        math.isfinite(number)
        and (above is None or number > above)
        and (least is None or number >= least)
        and (most is None or number <= most)
    )
    if not holds:
        bounds = (("above", above), ("of at least", least), ("of at most", most))
        words = " and ".join(f"{text} {bound:g}" for text, bound in bounds if bound is not None)
        raise ConfigError(
            f"{owner} needs {name} to be a finite number{f' {words}' * bool(words)}, got "
            f"{described(value)}; leave it out for its default"
        )


def require_share(
    owner: str, name: str, value: object, *, zero: bool = False, one: bool = False
) -> None:
    """Raise ConfigError unless ``value`` is a share of something: a number from 0 to 1.

    Args:
        owner: Who has the setting, for the message.
        name: The setting, for the message.
        value: What was given; the string that YAML makes of ``1e-1`` is none.
        zero: Whether 0 is a share, too.
        one: Whether 1 is.
    """
    number = float(value) if is_number(value) else math.nan  # type: ignore[arg-type]
    if 0 < number < 1 or (zero and number == 0) or (one and number == 1):
        return
    interval = ("[" if zero else "(") + "0, 1" + ("]" if one else ")")
    raise ConfigError(
        f"{owner} needs {name} to be a share in {interval}, got {described(value)}; a tenth is 0.1"
    )
