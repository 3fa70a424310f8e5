"""Heat maps of layers over training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from orthotrain.lab.report import style
from orthotrain.lab.report.curves import Grid
from orthotrain.lab.report.figures import Looks
from orthotrain.lab.report.load import Run
from orthotrain.lab.report.style import Plot, Theme

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_MAX_LABELS: Final = 40


@dataclass(frozen=True)
class HeatMap:
    """One map of layers over training.

    Attributes:
        title: What is drawn.
        grid: Its numbers.
        low: Where the colors start.
        high: Where they end.
        x: Name of the coordinate.
    """

    title: str
    grid: Grid
    low: float
    high: float
    x: str = "step"


@dataclass(frozen=True)
class HeatMaps:
    """Maps side by side; layers are rows, the first layer of the model at the top.

    Attributes:
        name: Stem of its PNG file.
        title: What it shows.
        caption: How to read it.
        maps: Of a run; none where it recorded nothing.
        missing: Why there is no figure.
    """

    name: str
    title: str
    caption: str
    maps: Callable[[Run], Sequence[HeatMap]]
    missing: str = "No variant recorded it."

    def plot(self, run: Run, look: Looks) -> Plot:
        """The plot of a run."""
        maps = self.maps(run)

        def draw(theme: Theme) -> Figure:
            layers = max(len(shown.grid.layers) for shown in maps)
            figure = style.new_figure(min(max(1.5 + 0.17 * layers, 2.6), 8.5))
            panels = np.atleast_1d(figure.subplots(1, len(maps)))
            same = len({shown.grid.layers for shown in maps}) == 1
            for index, (axes, shown) in enumerate(zip(panels, maps, strict=True)):
                image = _heat_map(axes, shown, theme)
                axes.tick_params(labelleft=index == 0 or not same)
                figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
            return figure

        caption = f"{self.caption} The first layer of the model is at the top."
        return Plot(
            self.name, self.title, caption, draw if maps else None, self.missing
        )  # fmt: skip


def _heat_map(axes: Axes, shown: HeatMap, theme: Theme) -> AxesImage:
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    colors = matplotlib.colormaps[style.HEAT_MAP].with_extremes(bad=theme.empty)
    x, layers = shown.grid.x, shown.grid.layers
    half = (x[-1] - x[0]) / max(2 * (len(x) - 1), 1) or 0.5
    image = axes.imshow(
        shown.grid.values, aspect="auto", interpolation="nearest", cmap=colors,
        extent=(x[0] - half, x[-1] + half, len(layers) - 0.5, -0.5),
        vmin=shown.low, vmax=shown.high,
    )  # fmt: skip
    each = math.ceil(len(layers) / _MAX_LABELS)
    axes.set_yticks(range(0, len(layers), each), layers[::each], fontsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_title(shown.title)
    axes.set_xlabel(shown.x)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image
