"""What a run's weights, gradients and optimizer state take, as rows and totals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["dense", "factored", "materialized"]


@dataclass(frozen=True)
class Row:
    """One weight, without its bias.

    Attributes:
        name: Qualified name of the module, wrapper prefixes removed.
        shape: Shape of the dense weight.
        rank: Rank of the low-rank form, ``None`` while dense.
        trainable: Numbers that are trained.
        stored: Numbers that are kept: the trained ones and the frozen factors.
        dense: Numbers in the dense weight.
        form: ``"factored"`` multiplies by the factors one after the other,
            ``"materialized"`` builds the weight first.
        note: Anything worth a few words, such as why a layer stays dense.
        buffers: How many of ``stored`` lie in buffers. ``None`` means
            ``stored - trainable`` for a low-rank form and 0 for a dense one; give it when the
            core itself is frozen.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    trainable: int
    stored: int
    dense: int
    form: Form
    note: str = ""
    buffers: int | None = None
