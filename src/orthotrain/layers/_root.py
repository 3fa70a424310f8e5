"""The root inside a layer: its settings, errors that name the layer, eager when compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from orthotrain.errors import NonFiniteError, NotPositiveDefiniteError


# A root looks at its numbers (finite? definite?), which no graph can; so one break, here.
@torch.compiler.disable(reason="a matrix root depends on its numbers")  # type: ignore[no-untyped-call, untyped-decorator]
def root_in_layer(
    layer: str, root: Callable[..., Tensor], covariance: Tensor, **settings: Any
) -> Tensor:
    """``root(covariance, **settings)``; an error of the kernel names ``layer``, too."""
    try:
        return root(covariance, **settings)
    except (NonFiniteError, NotPositiveDefiniteError) as error:
        raise type(error)(
            f"{layer} cannot take the root of the covariance of its input: {error}"
        ) from error
