"""Sprites and moments an image: targets are 1,000 sprites and 1,000 moments a second at 64 pixels.

Time is processor time of this process, so a busy machine changes little; run with one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from _measure import report
from orthotrain.data import Sprites, sprite_moments

IMAGES, ROUNDS = 1000, 7
TARGET = 1000


def per_second(work: Callable[[], object]) -> float:
    """Images a second, the median of some rounds after one to warm up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return IMAGES / statistics.median(seconds[1:])


def main() -> None:
    rows = []
    for size, settings in (
        (16, {}),
        (32, {}),
        (64, {"binary": True}),
        (64, {}),
        (64, {"supersample": 4}),
        (64, {"color": True}),
    ):
        sprites = Sprites(size, **settings)
        factors = sprites.sample_factors(IMAGES, generator=torch.Generator().manual_seed(0))
        images = sprites.render(factors)
        drawn = per_second(lambda: sprites.render(factors))  # noqa: B023 - called at once
        measured = per_second(lambda: sprite_moments(images))  # noqa: B023
        met = "met" if min(drawn, measured) >= TARGET else "MISSED"
        chosen = ", ".join(f"{name}={value}" for name, value in settings.items()) or "as given"
        rows.append((size, chosen, f"{drawn:,.0f}", f"{measured:,.0f}", f"{met} (>= {TARGET:,})"))
    report(
        "Sprites (re-rendered), images a second",
        ("pixels", "settings", "drawn", "moments", "target"),
        rows,
    )


if __name__ == "__main__":
    main()
