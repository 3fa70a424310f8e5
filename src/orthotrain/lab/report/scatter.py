"""Rival groups of variants in one picture: one measure upwards over several others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from orthotrain.lab.report import style
from orthotrain.lab.report.figures import Looks
from orthotrain.lab.report.labels import Label, place_labels
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.style import Plot, Theme

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Marker = Literal["o", "s", "D", "v", "^", "P", "X", "*"]

_LEGEND_COLUMNS: Final = 4
# Room between the highest mark and the upper edge, as a share of the axis.
_EDGE: Final = 0.05


@dataclass(frozen=True)
class Group:
    """Variants that share a color and a marker.

    Attributes:
        title: In the legend.
        color: Index into the colors of the theme; ``None`` is its ink.
        marker: Of matplotlib.
        variants: Its members.
        hollow: Whether the marker is not filled.
        paths: Means that a line joins, in this order; they may belong to other groups.
        dotted: Whether that line is dotted.
    """

    title: str
    color: int | None
    marker: Marker
    variants: Sequence[Variant]
    hollow: bool = False
    paths: Sequence[Sequence[Variant]] = ()
    dotted: bool = False

    def shade(self, theme: Theme) -> str:
        """Its color in a theme."""
        return theme.ink if self.color is None else theme.cycle[self.color % len(theme.cycle)]


@dataclass(frozen=True)
class Over:
    """One set of axes.

    Attributes:
        measure: What runs to the right.
        label: A few letters beside the mean of a variant; none where empty.
    """

    measure: Measure
    label: Callable[[Variant], str] = lambda variant: ""


@dataclass(frozen=True)
class Scatter:
    """Groups of variants, one measure upwards over a measure per panel, with one legend.

    Attributes:
        name: Stem of its PNG file.
        title: What it shows.
        caption: How to read it.
        upwards: The measure that all panels share; it may depend on the run.
        panels: What runs to the right in each; they may depend on the run.
        groups: The rivals; a variant in none of them is not drawn.
        says: What the numbers of the run say, one sentence each, the most important first.
        line: The variant whose mean is a dashed line.
        top: Means above this value are drawn at the upper edge, with their number. NaN: none.
        missing: Why there is no figure.
    """

    name: str
    title: str
    caption: str
    upwards: Callable[[Run], Measure]
    panels: Callable[[Run], Sequence[Over]]
    groups: Callable[[Run], Sequence[Group]]
    says: Callable[[Run], Sequence[str]] = lambda run: ()
    line: Callable[[Run], Variant | None] = lambda run: run.baseline
    top: Callable[[Run], float] = lambda run: math.nan
    missing: str = "No finished seed has a value."

    def plot(self, run: Run, look: Looks) -> Plot:
        """The plot of a run; colors are those of the groups."""
        upwards, top, line = self.upwards(run), self.top(run), self.line(run)
        panels = [_Panel(over, upwards, self.groups(run), line, top) for over in self.panels(run)]
        filled = [panel for panel in panels if any(panel.means(g) for g in panel.groups)]

        def draw(theme: Theme) -> Figure:
            figure = style.new_figure(5.0)
            grid = figure.subplots(1, len(filled), sharey=True, squeeze=False)[0]
            labels = [panel.draw(axes, theme) for panel, axes in zip(filled, grid, strict=True)]
            grid[0].set_ylabel(upwards.heading)
            _legend(figure, filled, theme)
            figure.draw_without_rendering()  # labels need to know where everything lies
            for axes, mine in zip(grid, labels, strict=True):
                place_labels(axes, mine)
            return figure

        return Plot(
            self.name, self.title,
            f"{self.caption} Points are means over seeds, bars are one standard deviation.",
            draw if filled else None, self.missing, self._alt(filled), tuple(self.says(run)),
        )  # fmt: skip

    def _alt(self, panels: Sequence[_Panel]) -> str:
        said = "; ".join(
            f"{panel.upwards.heading} over {panel.over.measure.heading}: "
            + ", ".join(
                f"{variant.title} {panel.upwards.show_value(y)} at "
                f"{panel.over.measure.show_value(x)}"
                for group in panel.groups
                for variant, (x, y) in panel.means(group)
            )
            for panel in panels
        )
        return f"{self.title}. {said}." if said else self.title


@dataclass(frozen=True)
class _Panel:
    over: Over
    upwards: Measure
    groups: Sequence[Group]
    line: Variant | None
    top: float

    def mean(self, variant: Variant) -> tuple[float, float]:
        return self.over.measure.mean(variant), self.upwards.mean(variant)

    def means(self, group: Group) -> list[tuple[Variant, tuple[float, float]]]:
        """The members that have both numbers, and the two."""
        found = [(variant, self.mean(variant)) for variant in group.variants]
        return [(v, pair) for v, pair in found if all(map(math.isfinite, pair))]

    def draw(self, axes: Axes, theme: Theme) -> list[Label]:
        """Draw everything but the labels, which are told."""
        axes.set_xlabel(self.over.measure.heading)
        axes.set_title(self.over.measure.title)
        if self.line is not None and math.isfinite(level := self.upwards.mean(self.line)):
            axes.axhline(level, color=theme.ink, linewidth=1.1, linestyle=(0, (5, 4)), zorder=1)
        for group in self.groups:
            for path in group.paths:
                self._join(axes, path, group, theme)
        marks = [
            self._mark(axes, variant, pair, group, theme)
            for group in self.groups
            for variant, pair in self.means(group)
        ]
        self._limit(axes)
        high = axes.get_ylim()[1]
        labels = []
        for line, label in marks:
            if self._beyond(label.y):
                edge = high - 0.5 * _EDGE * (high - axes.get_ylim()[0])
                line.set_ydata([edge])
                said = f"{label.text} \N{UPWARDS ARROW}{self.upwards.show_value(label.y)}".strip()
                label = Label(said, label.x, edge, label.color)
            labels.append(label)
        return labels

    def _beyond(self, value: float) -> bool:
        return value > self.top  # never, where there is no top

    def _join(self, axes: Axes, path: Sequence[Variant], group: Group, theme: Theme) -> None:
        known = [pair for pair in map(self.mean, path) if all(map(math.isfinite, pair))]
        if len(known) > 1:
            axes.plot(
                *zip(*known, strict=True), ":" if group.dotted else "-", linewidth=1.2,
                color=group.shade(theme), alpha=0.65, zorder=2,
            )  # fmt: skip

    def _mark(
        self, axes: Axes, variant: Variant, pair: tuple[float, float], group: Group, theme: Theme
    ) -> tuple[Line2D, Label]:
        color, (x, y) = group.shade(theme), pair
        bars = [measure.over_seeds(variant).std for measure in (self.over.measure, self.upwards)]
        if not self._beyond(y) and any(math.isfinite(bar) for bar in bars):
            across, up = (0.0 if math.isnan(bar) else bar for bar in bars)
            axes.errorbar(
                x, y, xerr=across or None, yerr=up or None, color=color, elinewidth=1.1,
                capsize=2, linestyle="none", zorder=3,
            )  # fmt: skip
        (line,) = axes.plot([x], [y], **_marked(group, theme), zorder=4)
        return line, Label(self.over.label(variant), x, y, color)

    def _limit(self, axes: Axes) -> None:
        shown = [
            bound
            for group in self.groups
            for variant, (_, y) in self.means(group)
            if not self._beyond(y)
            for bar in (self.upwards.over_seeds(variant).std,)
            for bound in (y - (bar if bar > 0 else 0.0), y + (bar if bar > 0 else 0.0))
        ]
        if not shown:
            return
        beyond = any(self._beyond(y) for group in self.groups for _, (_, y) in self.means(group))
        low, high = min(shown), max(shown)
        spare = _EDGE * (high - low or 1.0)
        axes.set_ylim(low - spare, high + (3.0 if beyond else 1.0) * spare)
        axes.set_xlim(left=0, right=1.06 * axes.get_xlim()[1])


def _marked(group: Group, theme: Theme) -> dict[str, object]:
    color = group.shade(theme)
    return {
        "color": color, "marker": group.marker, "markersize": 9 if group.marker == "*" else 6.5,
        "markerfacecolor": theme.paper if group.hollow else color, "markeredgewidth": 1.3,
        "markeredgecolor": color if group.hollow else theme.paper, "linestyle": "none",
    }  # fmt: skip


def _legend(figure: Figure, panels: Sequence[_Panel], theme: Theme) -> None:
    """Each group that has a point in any panel, and the dashed line."""
    from matplotlib.lines import Line2D

    groups = {g.title: g for panel in panels for g in panel.groups if panel.means(g)}
    handles = [Line2D([], [], label=title, **_marked(g, theme)) for title, g in groups.items()]
    line = panels[0].line
    if line is not None:
        dashed = Line2D([], [], color=theme.ink, linestyle=(0, (5, 4)), label=line.title)
        handles.insert(0, dashed)
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(len(handles), _LEGEND_COLUMNS)
    )
