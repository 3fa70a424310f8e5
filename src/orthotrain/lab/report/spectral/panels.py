"""What the figures of a spectral run share: curves of variants, one panel of them, alt texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes

from orthotrain.lab.report import style
from orthotrain.lab.report.load import Variant
from orthotrain.lab.report.rows import Row, number
from orthotrain.lab.report.series import Curve
from orthotrain.lab.report.spectral.style import (
    Hue,
    Reduce,
    draw,
    logarithmic,
    name_ends,
    power_of_ten,
    spectral_curve,
)
from orthotrain.lab.report.style import Theme

BANDS: Final = (
    "Lines are geometric means over seeds, bands reach from the lowest to the highest seed, each "
    "point is the median of one of 40 equal stretches. "
)


def field(what: str, key: str) -> Callable[[Row], float]:
    """Reads one number of the condition records of ``what``; NaN in all others."""
    return lambda row: number(row, key) if row.get("what") == what else math.nan


def curves_of(
    variants: Sequence[Variant], kind: str, value: Callable[[Row], float],
    *, log: bool = True, reduce: Reduce = "median",
) -> list[tuple[Variant, Curve]]:  # fmt: skip
    """The curve of each variant that recorded the value."""
    found = [(v, spectral_curve(v, kind, value, logarithmic=log, reduce=reduce)) for v in variants]
    return [(variant, line) for variant, line in found if line is not None]


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: What is drawn.
        curves: The lines.
        log: Whether the axis is logarithmic.
        late: Whether the axis ends at the level reached after a fifth of the records.
    """

    title: str
    curves: Sequence[tuple[Variant, Curve]]
    log: bool = True
    late: bool = False


def draw_panels(
    look: Mapping[str, Hue], theme: Theme, every: Sequence[Axes], panels: Sequence[Panel]
) -> None:
    """Draw all panels of a figure, then name the lines, once shared limits are settled.

    Args:
        look: How each variant is drawn, by its name.
        theme: Of the page.
        every: The axes.
        panels: As many.
    """
    for axes, panel in zip(every, panels, strict=True):
        axes.set_title(panel.title)
        if panel.log and panel.curves:
            axes.set_yscale("log")
        draw(axes, [(look[variant.name], line) for variant, line in panel.curves])
        if not panel.curves:
            style.say(axes, "nothing recorded", theme)
    for axes, panel in zip(every, panels, strict=True):
        if panel.log and panel.curves:
            logarithmic(axes)
        if panel.late and panel.curves:
            axes.set_ylim(top=1.02 * max(line.high[len(line.x) // 5] for _, line in panel.curves))
        ends = [(look[v.name], float(line.x[-1]), float(line.mean[-1])) for v, line in panel.curves]
        name_ends(axes, [(hue.label, hue.color, x, y) for hue, x, y in ends])


def end_alt(title: str, panels: Sequence[Panel]) -> str:
    """The last value of every line, for those who do not see them."""
    said = "; ".join(
        f"{panel.title}: "
        + ", ".join(f"{v.title} {power_of_ten(float(line.mean[-1]))}" for v, line in panel.curves)
        for panel in panels
        if panel.curves
    )
    return f"{title}. At the last step, {said}." if said else title
