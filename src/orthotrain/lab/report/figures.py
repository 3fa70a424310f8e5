"""Two kinds of figures: curves in panels, and values by variant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from orthotrain.lab.report import style
from orthotrain.lab.report.curves import Array, Curve, Reduce, Series, Value, curve
from orthotrain.lab.report.drawing import (
    Line,
    draw_curve,
    logarithmic,
    name_lines,
    power_of_ten,
)
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.style import Look, Plot, Theme
from orthotrain.lab.report.tables import Measures, given

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Looks = Callable[[Run, Theme], Mapping[str, Look]]
Variants = Callable[[Run], Sequence[Variant]]

BINS: Final = 40
BANDS: Final = (
    "Lines are means over seeds, geometric ones on logarithmic axes. Bands reach from the lowest "
    "to the highest seed."
)
_DIRECTION: Final = {"more": "more is better", "less": "less is better", "": ""}


class FigureOf(Protocol):
    """A declared figure: anything that makes a plot of a run."""

    def plot(self, run: Run, look: Looks) -> Plot:
        """The plot of this run, or why there is none."""


def every(run: Run) -> Sequence[Variant]:
    """All variants of a run."""
    return run.variants


@dataclass(frozen=True)
class Reference:
    """A line that is not of this run, such as a published one.

    Attributes:
        label: Its name.
        x: Its coordinates, in those of the panel.
        y: Its values.
        like: The variant whose color it has; muted where the run has none of that name.
    """

    label: str
    x: Array
    y: Array
    like: str = ""


@dataclass(frozen=True)
class Panel:
    """One set of axes with a curve of each variant.

    Attributes:
        title: What is drawn, with its unit.
        kind: Which lines of the records; empty for a panel of what is beside alone.
        value: The number of one line.
        variants: Whose curves.
        x: The field that is the coordinate.
        fraction: Whether the coordinate is divided by its last one.
        log: Whether the axis is logarithmic.
        bins: Stretches of training that become one point each; ``None`` for every record.
        reduce: How several lines become one point, see :func:`curve`.
        late: Which end of the axis is cut at the level after a fifth of the records.
        zero: Whether the axis starts at zero.
        most: Where the axis ends at the latest; NaN for what ``late`` or the lines say.
        mark: A step of a variant that gets a dotted line; NaN for none.
        beside: Lines that are not of this run.
    """

    title: str
    kind: str
    value: Value
    variants: Variants = every
    x: str = "step"
    fraction: bool = False
    log: bool = False
    bins: int | None = BINS
    reduce: Reduce = "median"
    late: Literal["top", "bottom", ""] = ""
    zero: bool = False
    most: float = math.nan
    mark: Callable[[Variant], float] = lambda variant: math.nan
    beside: tuple[Reference, ...] = ()

    def curves(self, run: Run) -> list[tuple[Variant, Curve]]:
        """The curve of each variant that recorded the value."""
        series = Series(self.kind, self.value, self.x)
        shape: dict[str, Any] = {"bins": self.bins, "reduce": self.reduce, "geometric": self.log}
        found = [(v, curve(v, series, **shape)) for v in self.variants(run)]
        return [(v, self._scaled(line)) for v, line in found if line is not None]

    def _scaled(self, line: Curve) -> Curve:
        last = float(line.x[-1])
        x = line.x / last if self.fraction and last > 0 else line.x
        return Curve(x, line.mean, line.low, line.high)


@dataclass(frozen=True)
class Curves:
    """Curves over training, one panel per quantity.

    Attributes:
        name: Stem of its PNG file.
        title: What it shows.
        caption: How to read it.
        panels: Its axes, row by row; they may depend on the run.
        columns: Axes side by side.
        missing: Why there is no figure, where no variant recorded anything.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel] | Callable[[Run], Sequence[Panel]]
    columns: int = 2
    missing: str = "No variant recorded it."

    def plot(self, run: Run, look: Looks) -> Plot:
        """The plot of a run."""
        panels = given(self.panels, run)
        curves = [panel.curves(run) for panel in panels]
        known = any(curves) or any(panel.beside and not panel.kind for panel in panels)

        def draw(theme: Theme) -> Figure:
            rows = math.ceil(len(panels) / self.columns)
            figure = style.new_figure(0.6 + 3.2 * rows)
            grid = figure.subplots(rows, self.columns, squeeze=False)
            chosen = look(run, theme)
            drawn = [
                (axes, _draw_panel(axes, panel, lines, chosen, theme))
                for axes, panel, lines in zip(grid.flat, panels, curves, strict=False)
            ]
            for axes in list(grid.flat)[len(panels) :]:
                axes.set_axis_off()
            name_lines(figure, drawn)
            return figure

        return Plot(
            self.name, self.title, f"{self.caption} {BANDS}", draw if known else None,
            self.missing, _ends(self.title, panels, curves),
        )  # fmt: skip


def _draw_panel(
    axes: Axes, panel: Panel, lines: Sequence[tuple[Variant, Curve]], look: Mapping[str, Look],
    theme: Theme,
) -> list[Line]:  # fmt: skip
    """Draw everything of one panel, and tell the lines that need a name."""
    axes.set_title(panel.title)
    axes.set_xlabel("fraction of training" if panel.fraction else panel.x)
    named = [_draw_reference(axes, one, look, theme, i) for i, one in enumerate(panel.beside)]
    for variant, found in lines:
        draw_curve(axes, found, look[variant.name], stairs=panel.reduce == "hold")
        named.append(Line(look[variant.name], float(found.x[-1]), float(found.mean[-1])))
        if math.isfinite(mark := panel.mark(variant)):
            axes.axvline(mark, color=look[variant.name].color, linestyle=":", linewidth=1.2)
    if not named:
        style.say(axes, "nothing recorded", theme)
        return []
    axes.set_xlim(left=0)
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    axes.xaxis.set_major_locator(MaxNLocator(6))
    if panel.zero:
        axes.set_ylim(bottom=0)
    if panel.log:
        logarithmic(axes)
    else:
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    _cut(axes, panel, [line for _, line in lines])
    if panel.most < axes.get_ylim()[1] and lines:
        low = min(float(line.low.min()) for _, line in lines)
        axes.set_ylim(low - 0.05 * abs(panel.most - low), panel.most)
    return named


def _draw_reference(
    axes: Axes, one: Reference, look: Mapping[str, Look], theme: Theme, index: int
) -> Line:
    color = look[one.like].color if one.like in look else theme.muted
    drawn = Look(one.label, color, ":" if index % 2 == 0 else "-.")
    axes.plot(one.x, one.y, drawn.line, color=color, linewidth=1.3)
    return Line(drawn, float(one.x[-1]), float(one.y[-1]))


def _cut(axes: Axes, panel: Panel, lines: Sequence[Curve]) -> None:
    """Leave the first fifth of the records out of the limits, where the end could not be told."""
    if not panel.late or not lines:
        return
    low = min(float(line.low[len(line.x) // 5 :].min()) for line in lines)
    high = max(float(line.high[len(line.x) // 5 :].max()) for line in lines)
    margin = 0.04 * (high - low) or 0.5
    if panel.late == "bottom":
        axes.set_ylim(low - margin, high + margin)
    else:
        axes.set_ylim(top=high + margin)


def _ends(
    title: str, panels: Sequence[Panel], curves: Sequence[Sequence[tuple[Variant, Curve]]]
) -> str:
    """The last value of every line, for those who do not see them."""
    said = "; ".join(
        f"{panel.title}: "
        + ", ".join(f"{v.title} {power_of_ten(float(line.mean[-1]))}" for v, line in lines)
        for panel, lines in zip(panels, curves, strict=True)
        if lines
    )
    return f"{title}. At the end: {said}." if said else title


@dataclass(frozen=True)
class Values:
    """Values at the end of training: one row per variant, one panel per measure.

    Attributes:
        name: Stem of its PNG file.
        title: What it shows.
        caption: How to read it.
        measures: One panel each; they may depend on the run.
        against: Draw this measure upwards over the others, in place of one row per variant.
        variants: Which, in this order.
        line: The variant whose mean is a vertical line.
        missing: Why there is no figure.
    """

    name: str
    title: str
    caption: str
    measures: Measures
    against: Measure | None = None
    variants: Variants = every
    line: Callable[[Run], Variant | None] = lambda run: run.baseline
    missing: str = "No finished seed has a value."

    def plot(self, run: Run, look: Looks) -> Plot:
        """The plot of a run."""
        variants = [v for v in self.variants(run) if v.finished]
        measures = [m for m in given(self.measures, run) if any(m.over_seeds(v) for v in variants)]
        shown = [v for v in variants if any(m.over_seeds(v) for m in measures)]

        def draw(theme: Theme) -> Figure:
            chosen = look(run, theme)
            tall = 3.8 if self.against else 1.3 + 0.28 * len(shown)
            figure = style.new_figure(tall)
            grid = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
            for axes, measure in zip(grid, measures, strict=True):
                self._panel(axes, run, measure, shown, chosen)
            if self.against is not None:
                grid[0].set_ylabel(self.against.heading)
                _legend(figure, [chosen[v.name] for v in shown])
            else:
                _name_rows(grid, [v.title for v in shown])
            return figure

        return Plot(
            self.name, self.title,
            "Small dots are seeds, the large dot is their mean, bars are one standard deviation. "
            f"{self.caption}",
            draw if shown and measures else None, self.missing, self._alt(shown, measures),
        )  # fmt: skip

    def _panel(
        self, axes: Axes, run: Run, measure: Measure, shown: Sequence[Variant],
        look: Mapping[str, Look],
    ) -> None:  # fmt: skip
        line = self.line(run)
        if line is not None and math.isfinite(mean := measure.mean(line)):
            color = axes.spines["bottom"].get_edgecolor()
            axes.axvline(mean, color=color, linewidth=1.0, linestyle=(0, (2, 3)))
        for place, variant in enumerate(shown):
            _dots(axes, variant, measure, self.against or place, look[variant.name])
        if measure.logarithmic:
            axes.set_xscale("log")
        if self.against is not None:
            axes.set_xlabel(measure.heading)
            axes.set_xlim(left=0, right=1.04 * axes.get_xlim()[1])
            return
        axes.set_title(fill(measure.heading, 24 if len(given(self.measures, run)) > 2 else 40))
        axes.set_xlabel(_DIRECTION[measure.better])

    def _alt(self, shown: Sequence[Variant], measures: Sequence[Measure]) -> str:
        said = "; ".join(
            f"{measure.heading}: "
            + ", ".join(f"{v.title} {measure.show(measure.over_seeds(v))}" for v in shown)
            for measure in measures
        )
        return f"{self.title}. {said}." if said else self.title


def _dots(
    axes: Axes, variant: Variant, measure: Measure, against: Measure | int, look: Look
) -> None:
    """The seeds of a variant and their mean, at a height or over another measure."""
    height = against if isinstance(against, Measure) else None
    pairs = [
        (measure.read(seed), height.read(seed) if height else float(str(against)))
        for seed in variant.finished
    ]
    known = np.array([pair for pair in pairs if all(map(math.isfinite, pair))])
    if not known.size:
        return
    mean = known.mean(axis=0)
    if measure.logarithmic:
        mean[0] = measure.mean(variant)
    # A bar of deviations would be wrong on a logarithmic axis, where the dots say enough.
    bars = known.std(axis=0, ddof=1) if len(known) > 1 and not measure.logarithmic else None
    axes.plot(known[:, 0], known[:, 1], ".", color=look.color, alpha=0.5, markersize=6)
    axes.errorbar(
        mean[0], mean[1], xerr=None if bars is None else bars[0],
        yerr=None if bars is None or height is None else bars[1], color=look.color, marker="o",
        markersize=7, capsize=3, elinewidth=1.3, linestyle="none", label=look.label,
        markerfacecolor=look.color if look.line == "-" else "none",
    )  # fmt: skip


def _legend(figure: Figure, shown: Sequence[Look]) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(shown), 5))


def _name_rows(grid: Sequence[Axes], titles: Sequence[str]) -> None:
    grid[0].set_yticks(range(len(titles)), titles)
    grid[0].set_ylim(len(titles) - 0.5, -0.5)
    for axes in grid:
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
