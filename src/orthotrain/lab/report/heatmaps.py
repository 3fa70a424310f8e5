"""Heat maps of a report: ranks per layer, basis stability and mixing per layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from orthotrain.lab.report import style
from orthotrain.lab.report.load import BASELINE, Run, Variant
from orthotrain.lab.report.published import (
    PUBLISHED_EPOCHS,
    PUBLISHED_LAG_EPOCHS,
    PUBLISHED_STABILITY,
)
from orthotrain.lab.report.series import (
    Array,
    Curve,
    Grid,
    rank_grid,
    stability_curve,
    stability_grid,
)
from orthotrain.lab.report.style import Plot, Theme

_MAX_LABELS: Final = 40


def rank_plot(run: Run) -> Plot:
    """Rank over full rank per layer and step, one heat map a low-rank variant."""
    grids = [(v, grid) for v in run.low_rank if (grid := rank_grid(v)) is not None]

    def draw(theme: Theme) -> Figure:
        layers = max(len(grid.layers) for _, grid in grids)
        figure = style.new_figure(_map_height(layers))
        panels = np.atleast_1d(figure.subplots(1, len(grids), sharey=_same_layers(grids)))
        image = None
        for index, (axes, (variant, grid)) in enumerate(zip(panels, grids, strict=True)):
            image = _heat_map(axes, grid, theme, limits=(0.0, 1.0))
            axes.set_title(variant.title)
            axes.set_xlabel("optimizer step")
            axes.tick_params(labelleft=index == 0 or not _same_layers(grids))
        if image is not None:
            label = "rank / full rank (grey: dense)"
            figure.colorbar(image, ax=list(panels), label=label, pad=0.015, aspect=30)
        return figure

    return Plot(
        "ranks",
        "Rank per layer over training",
        "First layer of the model at the top. The color is the rank over the full rank, mean over "
        "the seeds that hold the layer in low-rank form; grey is dense. Final ranks are in the "
        "table 'Final ranks' below.",
        draw if grids else None,
        "No variant has a layer in low-rank form.",
    )


def _same_layers(grids: Sequence[tuple[Variant, Grid]]) -> bool:
    return len({grid.layers for _, grid in grids}) == 1


def _map_height(layers: int) -> float:
    return min(max(1.5 + 0.17 * layers, 2.6), 8.5)


def _heat_map(axes: Axes, grid: Grid, theme: Theme, *, limits: tuple[float, float]) -> AxesImage:
    colors = matplotlib.colormaps[style.HEAT_MAP].with_extremes(bad=theme.empty)
    half = (grid.x[-1] - grid.x[0]) / max(2 * (len(grid.x) - 1), 1) or 0.5
    extent = (grid.x[0] - half, grid.x[-1] + half, len(grid.layers) - 0.5, -0.5)
    image = axes.imshow(
        grid.values, aspect="auto", interpolation="nearest", cmap=colors, extent=extent,
        vmin=limits[0], vmax=limits[1],
    )  # fmt: skip
    every = math.ceil(len(grid.layers) / _MAX_LABELS)
    axes.set_yticks(range(0, len(grid.layers), every), grid.layers[::every], fontsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def stability_source(run: Run) -> Variant | None:
    """The run whose layers all stay dense and whose stability was recorded; the baseline first."""
    watched = [v for v in run.variants if not v.factored and stability_curve(v) is not None]
    return next((v for v in watched if v.name == BASELINE), watched[0] if watched else None)


def stability_plot(run: Run) -> Plot:
    """Stability and mixing as heat maps, and the mean stability beside the published curves."""
    source = stability_source(run)
    watched = [v for v in run.variants if not v.factored and stability_curve(v) is not None]

    def draw(theme: Theme) -> Figure:
        assert source is not None
        grids = [stability_grid(source, key) for key in ("stability", "mixing")]
        layers = max(len(grid.layers) for grid in grids if grid is not None)
        heights = [_map_height(layers), 3.4]
        figure = style.new_figure(sum(heights))
        spec = figure.add_gridspec(2, 2, height_ratios=heights)
        for column, (grid, title) in enumerate(
            zip(grids, ("Basis stability", "Mixing similarity"), strict=True)
        ):
            axes = figure.add_subplot(spec[0, column])
            axes.set_title(f"{title}, {source.title}")
            _stability_map(figure, axes, grid, theme, labels=column == 0)
        _stability_means(figure.add_subplot(spec[1, :]), run, watched, theme)
        return figure

    return Plot(
        "stability",
        "Basis stability and mixing",
        _stability_caption(source),
        draw if source is not None else None,
        "No variant that stays dense recorded the stability of its bases.",
    )


def _stability_map(
    figure: Figure, axes: Axes, grid: Grid | None, theme: Theme, *, labels: bool
) -> None:
    if grid is None:
        style.say(axes, "nothing recorded", theme)
        return
    low = float(np.nanquantile(grid.values, 0.02))
    image = _heat_map(axes, grid, theme, limits=(min(math.floor(low * 10) / 10, 0.9), 1.0))
    axes.set_xlabel("epoch")
    axes.tick_params(labelleft=labels)
    figure.colorbar(image, ax=axes, pad=0.02, aspect=30, extend="min")


def _stability_means(axes: Axes, run: Run, watched: Iterable[Variant], theme: Theme) -> None:
    look = style.looks(run, theme)
    fraction = np.array(PUBLISHED_EPOCHS, dtype=np.float64) / PUBLISHED_EPOCHS[-1]
    for known, line in zip(PUBLISHED_STABILITY, (":", "-."), strict=True):
        axes.plot(
            fraction, known.values, line, color=theme.muted, linewidth=1.4,
            label=f"{known.name}, ImageNet (published)",
        )  # fmt: skip
    for variant in watched:
        line_of = stability_curve(variant)
        if line_of is not None:
            style.draw_curve(axes, _as_fraction(line_of), look[variant.name])
    axes.set_title("Mean over layers")
    axes.set_xlabel("fraction of training")
    axes.set_ylabel("basis stability")
    axes.set_xlim(0.0, 1.0)
    axes.legend(loc="lower right", ncols=2)


def _as_fraction(line: Curve) -> Curve:
    x: Array = line.x / line.x[-1] if line.x[-1] > 0 else line.x
    return Curve(x, line.mean, line.low, line.high)


def _stability_caption(source: Variant | None) -> str:
    line = stability_curve(source) if source is not None else None
    gap = "" if line is None or len(line.x) < 2 else _gap_sentence(line)
    return (
        "1 means: the same orthogonal basis (left) or the same mixing of its directions (right) "
        "as at the comparison before. Color scales end at 1 and start near the lowest values. "
        f"{gap}The published curves compare with {PUBLISHED_LAG_EPOCHS} epochs earlier and are "
        "drawn over the 100 epochs published. They are beside ours for their shape only: data, "
        "scale and learning-rate schedule differ, and a falling learning rate alone also drives "
        "the stability to one, so a rise towards the end is no proof that a basis has settled."
    )


def _gap_sentence(line: Curve) -> str:
    epochs = float(np.median(np.diff(line.x)))
    share = 100 * epochs / float(line.x[-1])
    unit = "epoch" if epochs == 1 else "epochs"
    return f"Our records lie {epochs:.3g} {unit} ({share:.2g} % of training) apart. "
