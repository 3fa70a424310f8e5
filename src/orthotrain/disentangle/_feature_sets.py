"""What every comparison of two sets of feature vectors asks of them, and their distances."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.errors import ShapeError
from orthotrain.linalg._inputs import require_finite, require_real_floating

# Rows of a distance matrix at a time: 8 MB for 1,000 columns in float64.
_ROWS = 1024


def require_feature_sets(
    function: str, real: Tensor, fake: Tensor, *, least: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """The two sets in float64; raises unless each is a finite ``(n, d)`` with enough rows."""
    for name, x in (("real", real), ("fake", fake)):
        if x.ndim != 2 or x.shape[1] == 0:
            raise ShapeError(
                f"{function} needs features {name} of shape (n, d), got {tuple(x.shape)}; embed "
                f"the images in a feature space first"
            )
        require_real_floating(function, x, name=name)
        if len(x) < least:
            raise ShapeError(
                f"{function} needs at least {least} samples in each set, got {len(x)} in {name} "
                f"of shape {tuple(x.shape)}; draw more"
            )
        require_finite(function, x, name=name)
    if real.shape[1] != fake.shape[1]:
        raise ShapeError(
            f"{function} needs both sets in one feature space, got {real.shape[1]} and "
            f"{fake.shape[1]} features; embed them by the same function"
        )
    return real.detach().double(), fake.detach().to(real.device).double()


def distances(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Euclidean distances, entry by entry: equal pairs have equal distances, and a pair of one 0.

    The product form of ``cdist`` is faster and cannot tell near points from equal ones.
    """
    return torch.cat(
        [
            torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist")
            for rows in torch.split(a, _ROWS)
        ]
    )


def neighbour_radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Distance of every point to its k-th nearest other point."""
    # The nearest of all is the point itself.
    return distances(x, x).kthvalue(k + 1, dim=1).values
