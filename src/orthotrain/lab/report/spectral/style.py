"""How the many variants of a spectral run are told apart: a hue a treatment, names at the lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.rows import Row, number
from orthotrain.lab.report.series import Curve, last_step
from orthotrain.lab.report.spectral.measures import geometric_mean, group_of, parts
from orthotrain.lab.report.style import DARK, Theme

# So few that the naive condition numbers, which jump with every rounding, leave readable lines.
BINS: Final = 40
_EXTRA: Final = {True: "#c79a6c", False: "#8a5a2b"}
# The treatment that gives a variant its hue, the rarer one first: NOG + OW looks like OW.
_HUES: Final = ("ns", "sn", "ol", "ow", "olr", "nog")
_CYCLE: Final = {"nog": 0, "olr": 1, "ow": 2, "ol": 3, "sn": 4, "ns": 5}

LineStyle = Literal["-", "--", ":"]


@dataclass(frozen=True)
class Hue:
    """How one variant is drawn in every figure of its run."""

    label: str
    color: str
    line: LineStyle


def hues(run: Run, theme: Theme) -> dict[str, Hue]:
    """By name: the root alone in ink, treatments in colors, the baseline and fixed norms broken."""
    return {variant.name: _hue(run, variant, theme) for variant in run.variants}


def _hue(run: Run, variant: Variant, theme: Theme) -> Hue:
    line: LineStyle = "-"
    if variant is run.baseline or "fixed" in parts(variant):
        line = "--"
    elif parts(variant) == {"nog", "olr"}:
        line = ":"  # Beside OLR alone, whose color it has.
    return Hue(_name(variant), _color(run, variant, theme), line)


def _color(run: Run, variant: Variant, theme: Theme) -> str:
    done = parts(variant) - {"fixed"}
    if variant is run.baseline:
        return theme.muted
    if not done:
        return theme.ink
    if len(done) > 2:
        return _EXTRA[theme is DARK]
    if done == {"ow", "olr"}:
        return theme.cycle[5]
    main = next((name for name in _HUES if name in done), "nog")
    return theme.cycle[_CYCLE[main]]


def _name(variant: Variant) -> str:
    """Short enough to stand at the end of a line: ``NOG + OW``; the title of a reference."""
    done = parts(variant) - {"fixed"}
    if not done:
        return variant.title
    treated = " + ".join(name.upper() for name in variant.treatments if name in done)
    return f"{treated}, fixed" if "fixed" in parts(variant) else treated


def shown_in(run: Run, group: str) -> list[Variant]:
    """The variants of one figure: a group with the references that belong beside it."""
    return [v for v in run.variants if group_of(run, v) == group or _beside(run, v, group)]


def _beside(run: Run, variant: Variant, group: str) -> bool:
    done = parts(variant)
    if group == "single":
        return group_of(run, variant) == "reference"
    alone = {frozenset[str](), frozenset({"nog"})}
    if group == "fixed":
        alone.add(frozenset({"olr"}))
    return bool(variant.treatments) and done in alone


Reduce = Literal["median", "mean"]


def spectral_curve(
    variant: Variant,
    kind: str,
    value: Callable[[Row], float],
    *,
    logarithmic: bool = True,
    reduce: Reduce = "median",
) -> Curve | None:
    """Any number of the rows of a kind over optimizer steps.

    Args:
        variant: All its seeds count, finished or not, as far as their records go.
        kind: Which rows.
        value: The number of one row; rows that give no finite one are left out.
        logarithmic: Geometric mean over seeds; then only positive numbers count.
        reduce: How each seed's rows within one of 40 stretches become one number.

    Returns:
        Mean, lowest and highest seed; ``None`` where no row has a value.
    """
    width = max(last_step([variant]) / BINS, 1e-9)
    by_place: dict[int, list[tuple[float, float]]] = {}
    for seed in variant.seeds:
        mine: dict[int, list[tuple[float, float]]] = {}
        for row in seed.rows.get(kind, ()):
            found, step = value(row), number(row, "step")
            if math.isfinite(found) and (found > 0 or not logarithmic):
                place = min(int(step // width), BINS - 1)
                mine.setdefault(place, []).append((step, found))
        for place, pairs in mine.items():
            gathered = np.asarray(pairs)
            middle = np.median(gathered, axis=0) if reduce == "median" else gathered.mean(axis=0)
            by_place.setdefault(place, []).append((float(middle[0]), float(middle[1])))
    if not by_place:
        return None
    ordered = [np.asarray(by_place[place]) for place in sorted(by_place)]
    mean = [
        geometric_mean(pairs[:, 1].tolist()) if logarithmic else float(pairs[:, 1].mean())
        for pairs in ordered
    ]
    return Curve(
        x=np.array([pairs[:, 0].mean() for pairs in ordered]),
        mean=np.array(mean),
        low=np.array([pairs[:, 1].min() for pairs in ordered]),
        high=np.array([pairs[:, 1].max() for pairs in ordered]),
    )


def draw(axes: Axes, curves: Sequence[tuple[Hue, Curve]]) -> None:
    """Mean lines over bands from the lowest to the highest seed."""
    for hue, line in curves:
        axes.fill_between(line.x, line.low, line.high, color=hue.color, alpha=0.13, linewidth=0)
        marker = "o" if len(line.x) < 3 else ""
        axes.plot(
            line.x, line.mean, color=hue.color, linestyle=hue.line, linewidth=1.5,
            marker=marker, markersize=3.5,
        )  # fmt: skip
    axes.set_xlim(left=0)


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis with lines at powers of ten, or between them where it spans few.

    Call it when everything is drawn: it reads the limits of the axes.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    between = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=between, numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))


def power_of_ten(value: float) -> str:
    """``1e6``; small whole powers and other numbers as they are."""
    plain = f"{value:g}"
    if not 1e-2 <= value < 1e4:
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
