"""Rival groups of variants in one picture: one measure upwards over several others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from orthotrain.lab.report import style
from orthotrain.lab.report.compressed import fit_height
from orthotrain.lab.report.figures import Looks
from orthotrain.lab.report.labels import Label, place_labels
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.stats import Measure
from orthotrain.lab.report.style import Plot, Theme

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Marker = Literal["o", "s", "D", "v", "^", "P", "X", "*"]

_LEGEND_COLUMNS: Final = 4
_DASHED: Final = (0, (5, 4))
# Markers that need more room to be seen.
_THIN: Final[tuple[Marker, ...]] = ("P", "X", "*")


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
        zero: Whether the axis starts at zero.
    """

    measure: Measure
    label: Callable[[Variant], str] = lambda variant: ""
    zero: bool = True


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
        knee: Above this value, or below it where more is better, the axis upwards is compressed,
            so that rivals far off are in the picture and those that matter are told apart. NaN:
            nowhere.
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
    knee: Callable[[Run], float] = lambda run: math.nan
    missing: str = "No finished seed has a value."

    def plot(self, run: Run, look: Looks) -> Plot:
        """The plot of a run; colors are those of the groups."""
        upwards, knee, line = self.upwards(run), self.knee(run), self.line(run)
        panels = [_Panel(over, upwards, self.groups(run), line) for over in self.panels(run)]
        filled = [panel for panel in panels if panel.points()]

        def draw(theme: Theme) -> Figure:
            figure = style.new_figure(5.2)
            grid = figure.subplots(1, len(filled), sharey=True, squeeze=False)[0]
            labels = [panel.draw(axes, theme) for panel, axes in zip(filled, grid, strict=True)]
            grid[0].set_ylabel(upwards.heading)
            bounds = [bound for panel in filled for bound in panel.bounds()]
            fit_height(grid, min(bounds), max(bounds), knee, theme, below=upwards.better == "more")
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

    def mean(self, variant: Variant) -> tuple[float, float]:
        return self.over.measure.mean(variant), self.upwards.mean(variant)

    def means(self, group: Group) -> list[tuple[Variant, tuple[float, float]]]:
        """The members that have both numbers, and the two."""
        found = [(variant, self.mean(variant)) for variant in group.variants]
        return [(v, pair) for v, pair in found if all(map(math.isfinite, pair))]

    def points(self) -> list[tuple[Group, Variant, tuple[float, float]]]:
        """Every point of the panel."""
        return [(group, *found) for group in self.groups for found in self.means(group)]

    def bounds(self) -> list[float]:
        """Lower and upper ends of every point's bar."""
        bars = [(y, _bar(self.upwards, variant)) for _, variant, (_, y) in self.points()]
        return [bound for y, bar in bars for bound in (y - bar, y + bar)]

    def draw(self, axes: Axes, theme: Theme) -> list[Label]:
        """Draw everything but the labels, which are told."""
        axes.set_title(self.over.measure.title)
        axes.set_xlabel(self.over.measure.unit)
        if self.line is not None and math.isfinite(level := self.upwards.mean(self.line)):
            axes.axhline(level, color=theme.ink, linewidth=1.1, linestyle=_DASHED, zorder=1)
        for group in self.groups:
            for path in group.paths:
                self._join(axes, path, group, theme)
        for group, variant, (x, y) in self.points():
            axes.errorbar(
                x, y, xerr=_bar(self.over.measure, variant) or None,
                yerr=_bar(self.upwards, variant) or None, color=group.shade(theme),
                elinewidth=1.1, capsize=2, linestyle="none", zorder=3,
            )  # fmt: skip
            axes.plot([x], [y], linestyle="none", zorder=4, clip_on=False, **_marked(group, theme))
        if self.over.zero:
            axes.set_xlim(left=0)
        axes.set_xlim(right=axes.get_xlim()[1] + 0.04 * np.ptp(axes.get_xlim()))
        return [
            Label(self.over.label(variant), x, y, group.shade(theme))
            for group, variant, (x, y) in self.points()
        ]

    def _join(self, axes: Axes, path: Sequence[Variant], group: Group, theme: Theme) -> None:
        known = [pair for pair in map(self.mean, path) if all(map(math.isfinite, pair))]
        if len(known) > 1:
            axes.plot(
                *zip(*known, strict=True), ":" if group.dotted else "-", linewidth=1.2,
                color=group.shade(theme), alpha=0.65, zorder=2,
            )  # fmt: skip


def _bar(measure: Measure, variant: Variant) -> float:
    """One standard deviation over seeds; zero where there is none."""
    std = measure.over_seeds(variant).std
    return std if std > 0 else 0.0


def _marked(group: Group, theme: Theme) -> dict[str, Any]:
    color, thin = group.shade(theme), group.marker in _THIN
    return {
        "color": color, "marker": group.marker, "markersize": 9.5 if thin else 6.5,
        "markerfacecolor": theme.paper if group.hollow else color,
        "markeredgewidth": 1.3 if group.hollow else 0.7,
        "markeredgecolor": color if group.hollow else theme.paper,
    }  # fmt: skip


def _legend(figure: Figure, panels: Sequence[_Panel], theme: Theme) -> None:
    """Each group that has a point in any panel; that of the dashed line with it."""
    from matplotlib.lines import Line2D

    line = panels[0].line
    groups = {g.title: g for panel in panels for g, _, _ in panel.points()}
    handles = [
        Line2D(
            [], [], label=title, linewidth=1.1,
            linestyle=_DASHED if list(g.variants) == [line] else "none",
            **_marked(g, theme),
        )
        for title, g in groups.items()
    ]  # fmt: skip
    columns = min(len(handles), _LEGEND_COLUMNS)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=2.6)
