"""Windows of a text: random ones to train on, fixed ones to measure on."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from orthotrain.errors import DataError

Pair = tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]


class WindowStream:
    """Endless batches of random windows; its state is that of its generator.

    Args:
        text: ``(n,)`` uint8.
        batch_size: Windows per batch.
        length: Symbols that are read; as many are to be told, one further on.
        seed: Seed of the stream's own generator.

    Raises:
        DataError: The text is shorter than one window.
    """

    def __init__(
        self, text: UInt8[Tensor, " n"], *, batch_size: int, length: int, seed: int
    ) -> None:
        _require_window(text, length)
        self._text = text
        self._batch_size = batch_size
        self._length = length
        self._part = slice(None)
        self._generator = torch.Generator().manual_seed(seed)

    def restrict_to(self, part: slice) -> None:
        """Give this part of each batch from now on; what is drawn is drawn for the whole batch."""
        self._part = part

    def next_batch(self) -> Pair:
        """What is read and what is to be told, each ``(batch, length)`` int64."""
        starts = torch.randint(
            len(self._text) - self._length, (self._batch_size,), generator=self._generator
        )
        return windows_at(self._text, starts[self._part], length=self._length)

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved stream stood."""
        self._generator.set_state(state["generator"])


def even_starts(text: UInt8[Tensor, " n"], *, count: int, length: int) -> Int64[Tensor, " windows"]:
    """Where ``count`` windows begin that are spread evenly over a text, at most all of them.

    Raises:
        DataError: The text is shorter than one window.
    """
    _require_window(text, length)
    places = len(text) - length
    count = min(count, places)
    return torch.arange(count) * places // count


def windows_at(text: UInt8[Tensor, " n"], starts: Int64[Tensor, " batch"], *, length: int) -> Pair:
    """The windows that begin at ``starts``, and the same one symbol on; ``(batch, length)``."""
    place = starts[:, None] + torch.arange(length + 1)
    windows = text[place.to(text.device)].long()
    return windows[:, :-1], windows[:, 1:]


def _require_window(text: Tensor, length: int) -> None:
    if len(text) <= length:
        raise DataError(
            f"a text of {len(text)} bytes is too short for windows of {length + 1}; use a longer "
            "text or a shorter context"
        )
