"""Drawing curves into axes, and telling them apart: a legend for a few, names at the ends else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from orthotrain.lab.report.curves import Curve
from orthotrain.lab.report.style import Look

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More lines than this are named at their ends.
_MOST_IN_LEGEND: Final = 5


def draw_curve(axes: Axes, line: Curve, look: Look, *, stairs: bool = False) -> None:
    """A mean line over a band from the lowest to the highest seed."""
    step: Literal["post"] | None = "post" if stairs else None
    style = "steps-post" if stairs else "default"
    axes.fill_between(
        line.x, line.low, line.high, color=look.color, alpha=0.14, linewidth=0, step=step
    )
    axes.plot(
        line.x, line.mean, color=look.color, linestyle=look.line, drawstyle=style,
        linewidth=1.6, marker="o" if len(line.x) < 3 else "", markersize=3.5,
    )  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line that needs a name: how it is drawn, and where it ends."""

    look: Look
    x: float
    y: float


def name_lines(figure: Figure, drawn: Sequence[tuple[Axes, Sequence[Line]]]) -> None:
    """Say which line is which; call it last, it reads the limits of the axes."""
    looks = list(dict.fromkeys(line.look for _, lines in drawn for line in lines))
    if len(looks) > _MOST_IN_LEGEND:
        for axes, lines in drawn:
            name_ends(axes, [(one.look.label, one.look.color, one.x, one.y) for one in lines])
        return
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=k.color, linestyle=k.line, label=k.label) for k in looks]
    if handles:
        figure.legend(
            handles=handles, loc="outside upper left", ncols=len(handles), columnspacing=1.6
        )


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis with lines at powers of ten, or between them where it spans few.

    Call it when everything is drawn: it reads the limits of the axes.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    from matplotlib.ticker import (
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullLocator,
        ScalarFormatter,
    )

    axes.yaxis.set_minor_locator(NullLocator())
    if high < 4 * low:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        return
    between = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=between, numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))


def power_of_ten(value: float) -> str:
    """``1e6``; small whole powers and other numbers as they are."""
    plain = f"{value:.4g}"
    if not 1e-2 <= abs(value) < 1e4 and value:
        digits, _, exponent = f"{value:.3e}".partition("e")
        plain = f"{float(digits):g}e{int(exponent)}"
    return plain


def name_ends(axes: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Write ``(label, color, x, y)`` beside the axes at the height of y, pushed apart where close.

    Call it last: it reads the limits of the axes.
    """
    wanted = sorted((_height(axes, y), label, color, x) for label, color, x, y in ends)
    # In inches, for labels of 7.8 points with some air between them.
    height = axes.get_window_extent().height / axes.figure.dpi
    gap = 0.135 / max(height, 0.5)
    places = spread_out([place for place, *_ in wanted], gap)
    right = axes.get_xlim()[1]
    for (place, label, color, x), shown in zip(wanted, places, strict=True):
        axes.annotate(
            label, (1.045, shown), xycoords="axes fraction", color=color, fontsize=7.8,
            va="center", annotation_clip=False,
        )  # fmt: skip
        axes.plot(
            (x / right if right else 1.0, 1.012, 1.038), (place, place, shown),
            transform=axes.transAxes, color=color, linewidth=0.6, alpha=0.6, clip_on=False,
        )  # fmt: skip


def _height(axes: Axes, y: float) -> float:
    """``y`` as a fraction of the axes' height."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        low, high, y = math.log10(low), math.log10(high), math.log10(y)
    return min(max((y - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved as little as needed to lie ``gap`` apart, kept near 0 to 1."""
    shown = list(places)
    for _ in range(100):
        moved = False
        for i in range(len(shown) - 1):
            lack = gap - (shown[i + 1] - shown[i])
            if lack > 1e-6:
                shown[i] -= lack / 2
                shown[i + 1] += lack / 2
                moved = True
        if not moved:
            break
    if not shown:
        return shown
    above, below = shown[-1] - 1.02, -0.02 - shown[0]
    shift = -above if above > 0 else max(below, 0.0)
    return [place + shift for place in shown]
