"""The root by the kernel itself: errors that name the layer, eager when compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from orthotrain.errors import NonFiniteError, NotPositiveDefiniteError
from orthotrain.layers._tracing import untraced


# A root looks at its numbers (finite? definite?), which no graph can; so one break, here.
@untraced
def root_now(
    layer: str, root: Callable[..., Tensor], covariance: Tensor, **settings: Any
) -> Tensor:
    """The root by the kernel itself."""
    try:
        return root(covariance, **settings)
    except (NonFiniteError, NotPositiveDefiniteError) as error:
        raise type(error)(
            f"{layer} cannot take the root of the covariance of its input: {error}"
        ) from error
