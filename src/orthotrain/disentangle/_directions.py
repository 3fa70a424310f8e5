"""What the penalties on a generator's derivatives share: random signs and outputs as a list."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg._inputs import require_real_floating

#: One tensor, or several activations that are penalised each by itself and summed.
Outputs = Tensor | Sequence[Tensor]


def require_latents(function: str, z: Tensor) -> None:
    """Raise unless ``z`` is a real floating-point ``(n, d)`` that is not empty."""
    if z.ndim != 2 or 0 in z.shape:
        raise ShapeError(
            f"{function} needs latents z of shape (n, d) with n, d >= 1, got {tuple(z.shape)}; "
            f"flatten them with z.flatten(1)"
        )
    require_real_floating(function, z, name="z")


def require_penalty(function: str, z: Tensor, directions: int, step: float) -> None:
    """Raise unless the latents and the settings of a penalty make sense."""
    require_latents(function, z)
    if isinstance(directions, bool) or not isinstance(directions, int) or directions < 2:
        raise ConfigError(
            f"{function} needs directions as a whole number of at least 2, got {directions!r}; a "
            f"variance is taken over them"
        )
    if not 0 < step < float("inf"):
        raise ConfigError(
            f"{function} needs a finite step > 0, got {step}; the published one is 0.1"
        )


def rademacher(
    z: Float[Tensor, "n d"], directions: int, generator: torch.Generator
) -> Float[Tensor, "k n d"]:
    """Directions of entries -1 and 1, one for each row, where and as the latents are."""
    shape = (directions, *z.shape)
    bits = torch.randint(2, shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(z)


def as_list(function: str, out: Outputs, n: int) -> list[Tensor]:
    """The outputs of a generator as a list; raises unless each has a row a latent."""
    outputs = [out] if isinstance(out, Tensor) else list(out)
    for x in outputs:
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != n or x.numel() == 0:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"{function} needs outputs of shape (n, ...) with n = {n}, got {got} from "
                f"generate; return one tensor, or a list of activations"
            )
    if not outputs:
        raise ShapeError(f"{function} needs outputs of generate, got an empty list; return one")
    return outputs
