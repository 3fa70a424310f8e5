"""One look for every figure: colors that color-blind readers tell apart, light and dark."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from orthotrain.lab.report.load import Run

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

WIDTH_INCHES: Final = 10.0
DOTS_PER_INCH: Final = 150
HEAT_MAP: Final = "viridis"


@dataclass(frozen=True)
class Theme:
    """Colors of one appearance. ``cycle`` follows Okabe and Ito (2008), lighter on dark."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    empty: str
    cycle: tuple[str, ...]


LIGHT: Final = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2330",
    muted="#667085",
    grid="#e6e9ef",
    empty="#e3e6ec",
    cycle=("#0072b2", "#d55e00", "#009e73", "#b2568a", "#b88700", "#3a8fc4"),
)
DARK: Final = Theme(
    name="dark",
    paper="#171b24",
    ink="#e7eaf0",
    muted="#98a2b3",
    grid="#2a303c",
    empty="#353c4a",
    cycle=("#4fb0ea", "#ff8f4a", "#35c99d", "#e59bc5", "#efbf4a", "#9ad4f7"),
)
THEMES: Final = (LIGHT, DARK)


@dataclass(frozen=True)
class Plot:
    """One figure of a run.

    Attributes:
        name: Stem of its PNG file.
        title: What it shows.
        caption: How to read it and what it cannot show.
        draw: Draws it in a theme; ``None`` where the run has nothing to draw.
        missing: Why there is no drawing.
        alt: What it shows, in words and numbers; the title where empty.
        says: What the numbers say, one sentence each, the most important first.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Theme], Figure] | None
    missing: str = ""
    alt: str = ""
    says: tuple[str, ...] = ()


LineStyle = Literal["-", "--", ":", "-."]
_LINES: Final[tuple[LineStyle, ...]] = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Look:
    """How one variant is drawn, the same in every figure of its run."""

    label: str
    color: str
    line: LineStyle = "-"


def looks(run: Run, theme: Theme) -> dict[str, Look]:
    """A look for each variant by name: the baseline in ink, the others in colors, then dashes."""
    others = [variant for variant in run.variants if variant is not run.baseline]
    chosen = {}
    for index, variant in enumerate(others):
        line = _LINES[index // len(theme.cycle) % len(_LINES)]
        color = theme.cycle[index % len(theme.cycle)]
        chosen[variant.name] = Look(variant.title, color, line)
    if run.baseline is not None:
        chosen[run.baseline.name] = Look(run.baseline.title, theme.ink)
    return chosen


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Draw inside it: matplotlib's defaults and this theme, whatever the user's settings are."""
    import matplotlib.style

    # The "default" sheet first, so that nobody's matplotlibrc changes a report.
    with matplotlib.style.context("default"), matplotlib.rc_context(_settings(theme)):
        yield


def _settings(theme: Theme) -> dict[RcKeyType, Any]:
    return {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.parse_math": False,
        "text.color": theme.ink,
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10.0,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 8.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
    }


def new_figure(height: float) -> Figure:
    """An empty figure of the page's width, with room for a legend above its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DOTS_PER_INCH, layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.08, h_pad=0.06, wspace=0.04, hspace=0.04)  # type: ignore[call-arg]
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same data."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=figure.dpi, metadata={"Software": None})
    return out.getvalue()


def say(axes: Axes, sentence: str, theme: Theme) -> None:
    """A sentence in the middle of empty axes."""
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", color=theme.muted)
