"""An axis that is compressed at one end, so that what lies far off is still in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from orthotrain.lab.report.curves import Array
from orthotrain.lab.report.style import Theme

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes

# The part beyond the knee is so high, as a share of the rest.
_BEYOND: Final = 0.32
# With less than this to gain, as a ratio of the two ranges, nothing is compressed.
_WORTH: Final = 1.5
_EDGE: Final = 0.06


def fit_height(
    grid: Sequence[Axes], low: float, high: float, knee: float, theme: Theme, *, below: bool = False
) -> None:
    """Limits and ticks of axes that share their height; compressed beyond ``knee`` where it pays.

    Args:
        grid: Axes with a shared height.
        low: The lowest value that is drawn.
        high: The highest one.
        knee: Where the compression begins; NaN for none.
        theme: Colors of the band behind the compressed part.
        below: Whether the part below the knee is compressed, not that above it.
    """
    # Distances from the knee into the compressed part and into the other one.
    far, near = (knee - low, high - knee) if below else (high - knee, knee - low)
    if not (near > 0 and high - low > _WORTH * near):
        spare = _EDGE * ((high - low) or 1.0)
        grid[0].set_ylim(low - spare, high + spare)
        return
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    slope = _BEYOND * near / (1.08 * far)
    ends = (
        knee + 1.08 * far * (-1 if below else 1),
        knee + (1 + _EDGE) * near * (1 if below else -1),
    )
    low, high = min(ends), max(ends)

    def up(y: Array) -> Array:
        return np.where((y < knee) == below, knee + slope * (y - knee), y)

    def down(y: Array) -> Array:
        return np.where((y < knee) == below, knee + (y - knee) / slope, y)

    far_part = (low, knee - 0.2 * (knee - low), 2) if below else (
        knee + 0.2 * (high - knee), high, 2,
    )  # fmt: skip
    near_part = (knee, high, 6) if below else (low, knee, 6)
    ticks = sorted(
        float(tick)
        for bottom, top, count in (near_part, far_part)
        for tick in MaxNLocator(count).tick_values(bottom, top)
        if bottom <= tick <= top
    )
    digits = next(
        d for d in range(2, 9) if all(abs(round(t, d) - t) < 1e-9 for t in ticks) or d == 8
    )
    for axes in grid:
        axes.set_yscale("function", functions=(up, down))
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{digits}f}"))
        band = (low, knee) if below else (knee, high)
        axes.axhspan(*band, color=theme.grid, alpha=0.5, linewidth=0, zorder=0)
    grid[0].set_ylim(low, high)
