"""An axis whose upper part is compressed, so that what lies far off is still in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from orthotrain.lab.report.curves import Array
from orthotrain.lab.report.style import Theme

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes

# The part above the knee is so high, as a share of the part below it.
_ABOVE: Final = 0.32
# With less than this to gain, as a ratio of the two ranges, nothing is compressed.
_WORTH: Final = 1.5
_EDGE: Final = 0.06


def fit_height(grid: Sequence[Axes], low: float, high: float, knee: float, theme: Theme) -> None:
    """Limits and ticks of axes that share their height; compressed above ``knee`` where it pays.

    Args:
        grid: Axes with a shared height.
        low: The lowest value that is drawn.
        high: The highest one.
        knee: Where the compression begins; NaN for none.
        theme: Colors of the band behind the compressed part.
    """
    if not (low < knee and high - low > _WORTH * (knee - low)):
        spare = _EDGE * ((high - low) or 1.0)
        grid[0].set_ylim(low - spare, high + spare)
        return
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    high += 0.08 * (high - knee)
    low -= _EDGE * (knee - low)
    slope = _ABOVE * (knee - low) / (high - knee)

    def up(y: Array) -> Array:
        return np.where(y > knee, knee + slope * (y - knee), y)

    def down(y: Array) -> Array:
        return np.where(y > knee, knee + (y - knee) / slope, y)

    ticks = [
        float(tick)
        for bottom, top, count in ((low, knee, 6), (knee + 0.2 * (high - knee), high, 2))
        for tick in MaxNLocator(count).tick_values(bottom, top)
        if bottom <= tick <= top
    ]
    digits = next(
        d for d in range(2, 9) if all(abs(round(t, d) - t) < 1e-9 for t in ticks) or d == 8
    )
    for axes in grid:
        axes.set_yscale("function", functions=(up, down))
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{digits}f}"))
        axes.axhspan(knee, high, color=theme.grid, alpha=0.5, linewidth=0, zorder=0)
    grid[0].set_ylim(low, high)
