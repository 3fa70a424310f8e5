"""The narrowest network that stores as many numbers as another one: the rival of a cut."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import nn


class Widths(Protocol):
    """A frozen dataclass of a network's sizes."""

    @property
    def width(self) -> int: ...  # noqa: D102


Config = TypeVar("Config", bound=Widths)


def narrowest(
    config: Config, *, stored: int, build: Callable[[Config], nn.Module], step: int
) -> Config:
    """The narrowest network that stores at least ``stored`` numbers, never wider than given.

    The rival gets the benefit of the doubt: its width is rounded up.

    Args:
        config: The full network.
        stored: Numbers that a low-rank network stores.
        build: Makes a network of a configuration; called on the meta device.
        step: Widths are multiples of it; a transformer's of its heads.
    """

    def at(width: int) -> Config:
        narrow: Config = replace(config, width=width)  # type: ignore[type-var]
        return narrow

    widths = range(step, config.width, step)
    found = bisect_left(widths, stored, key=lambda width: numbers_of(partial(build, at(width))))
    return at(widths[found]) if found < len(widths) else config


def numbers_of(build: Callable[[], nn.Module]) -> int:
    """All numbers of a network; it is made on the meta device, without drawing any."""
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())
