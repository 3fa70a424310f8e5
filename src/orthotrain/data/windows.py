"""Windows of a text: random ones to train on, fixed ones to measure on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from orthotrain.errors import DataError

Pair = tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]


class WindowStream:
    """Endless batches of random windows; its state is that of its generator.

    Args:
        places: Number of places where a window can begin.
        at: From ``(batch,)`` int64 places, each below ``places``, to a batch of windows.
        batch_size: Windows per batch.
        seed: Seed of the stream's own generator.
    """

    def __init__(
        self,
        places: int,
        at: Callable[[Int64[Tensor, " batch"]], tuple[Tensor, ...]],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._places, self._at = places, at
        self._batch_size = batch_size
        self._part = slice(None)
        self._generator = torch.Generator().manual_seed(seed)

    def restrict_to(self, part: slice) -> None:
        """Give this part of each batch from now on; what is drawn is drawn for the whole batch."""
        self._part = part

    def next_batch(self) -> tuple[Tensor, ...]:
        """The windows at random places, as ``at`` gives them."""
        starts = torch.randint(self._places, (self._batch_size,), generator=self._generator)
        return self._at(starts[self._part])

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved stream stood."""
        self._generator.set_state(state["generator"])


def places(text: UInt8[Tensor, " n"], *, length: int) -> int:
    """How many windows of ``length`` bytes, and the byte behind, begin in a text.

    Raises:
        DataError: The text is shorter than one window.
    """
    if len(text) <= length:
        raise DataError(
            f"a text of {len(text)} bytes is too short for windows of {length + 1}; use a longer "
            "text or a shorter context"
        )
    return len(text) - length


def even_starts(places: int, *, count: int) -> Int64[Tensor, " windows"]:
    """``count`` of so many places, spread evenly; at most all of them."""
    count = min(count, places)
    return torch.arange(count) * places // count


def windows_at(text: UInt8[Tensor, " n"], starts: Int64[Tensor, " batch"], *, length: int) -> Pair:
    """The windows that begin at ``starts``, and the same one symbol on; ``(batch, length)``."""
    place = starts[:, None] + torch.arange(length + 1)
    windows = text[place.to(text.device)].long()
    return windows[:, :-1], windows[:, 1:]
