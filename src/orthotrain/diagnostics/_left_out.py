"""Which weights a look at all weights leaves out: large embeddings and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from orthotrain.methods.select import Pattern

#: A matrix is an embedding or a head where it is larger than both: its longer side over the
#: shorter, as ``max_aspect`` of ``AdaptiveLowRank``, and its entries.
MOST_ASPECT: Final = 10
MOST_ENTRIES: Final = 2**20


def split_patterns(
    patterns: Pattern | Sequence[Pattern],
) -> tuple[list[Pattern], list[Pattern]]:
    """Those that mean all weights, ``"*"`` and ``"*.weight"``, and those that name some."""
    listed = [patterns] if isinstance(patterns, Pattern) else list(patterns)
    broad: list[Pattern] = [
        p for p in listed if isinstance(p, str) and p.replace("*", "") in ("", ".weight")
    ]
    return broad, [p for p in listed if not any(p is each for each in broad)]


def why_left_out(weight: Tensor | None) -> str | None:
    """Why a look at all weights passes over a dense weight, or ``None``."""
    if weight is None or weight.ndim != 2 or not weight.numel():
        return None  # filters of a convolution are long by their taps
    m, n = weight.shape
    if max(m, n) <= MOST_ASPECT * min(m, n) or m * n <= MOST_ENTRIES:
        return None
    return (
        f"{m}x{n} is an embedding or a head by its size: more than {MOST_ASPECT} times as long as "
        f"wide and more than {MOST_ENTRIES:,} entries; name it in params to watch it"
    )
