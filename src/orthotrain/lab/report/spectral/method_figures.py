"""What the gradient methods of a spectral run did: executed steps, rates, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from orthotrain.lab.report import style
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.rows import Row, number
from orthotrain.lab.report.spectral.measures import NOG, OLR, find, parts, rate_ratio
from orthotrain.lab.report.spectral.panels import (
    BANDS,
    Panel,
    curves_of,
    draw_panels,
    end_alt,
    field,
)
from orthotrain.lab.report.spectral.style import hues
from orthotrain.lab.report.spectral.tables import PART_NAMES, share_keys, share_over_seeds
from orthotrain.lab.report.style import Plot, Theme


def _method(method: str, value: Callable[[Row], float]) -> Callable[[Row], float]:
    return lambda row: value(row) if row.get("method") == method else math.nan


def _number_of(key: str) -> Callable[[Row], float]:
    return lambda row: number(row, key)


def steps_plot(run: Run) -> Plot:
    """Condition of the gradient and of the executed update where NOG is used."""
    treated = [v for v in run.variants if "nog" in parts(v)]
    gradient, update = (
        curves_of(treated, "method", _method(NOG, _number_of(key)))
        for key in ("gradient_condition", "update_condition")
    )
    root = find(run)
    if root is not None:
        update.extend(curves_of([root], "condition", field("update", "condition_range")))
    panels = [Panel("Gradient before NOG", gradient), Panel("Executed update", update)]

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(4.4)
        draw_panels(hues(run, theme), theme, list(figure.subplots(1, 2)), panels)
        for axes in figure.axes:
            axes.set_xlabel("optimizer step")
        figure.axes[0].set_ylabel("condition (largest / smallest singular value)")
        return figure

    return Plot(
        "steps",
        "Condition of the gradient and of the executed update",
        "NOG sets all singular values of the gradient to one, but momentum and weight decay come "
        "after it: the step that is executed is orthogonal only where its condition is one. The "
        f"root alone is drawn where its update was recorded. {BANDS}",
        paint if gradient or any("nog" in parts(v) for v, _ in update) else None,
        "No variant recorded NOG.",
        end_alt("Condition of gradient and executed update", panels),
    )


def rates_plot(run: Run) -> Plot:
    """The optimal learning rate over the scheduled one, how often it was used, cos(w, l)."""
    treated = [v for v in run.variants if "olr" in parts(v)]
    used = curves_of(treated, "method", _method(OLR, _used), log=False, reduce="mean")
    panels = [
        Panel("Rate over scheduled rate", curves_of(treated, "method", _method(OLR, rate_ratio))),
        Panel("Share of steps used", used, log=False),
        Panel("|cos(w, l)|", curves_of(treated, "method", _method(OLR, _cosine))),
    ]

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(8.6)
        grid = list(figure.subplots(3, 1, sharex=True))
        grid[1].set_ylim(-0.03, 1.03)
        grid[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        draw_panels(hues(run, theme), theme, grid, panels)
        figure.axes[-1].set_xlabel("optimizer step")
        return figure

    return Plot(
        "rates",
        "What the optimal learning rate did",
        "It is used in a step only where it is positive and below the scheduled rate; the first "
        "panel shows those steps alone. It is about |w| cos(w, l) / |l| while the cosine is "
        "small, and before a layer that is blind to the scale of w the cosine is zero up to "
        "noise: then OLR all but freezes the layer in the steps in which it is used. "
        f"{BANDS}",
        paint if any(panel.curves for panel in panels) else None,
        "No variant recorded OLR.",
        end_alt("Optimal learning rate", panels),
    )


def _used(row: Row) -> float:
    used = row.get("used")
    return float(used) if isinstance(used, bool) else math.nan


def _cosine(row: Row) -> float:
    return abs(number(row, "cosine"))


def shares_plot(run: Run) -> Plot:
    """What a step is spent on, a bar a variant."""
    keys = share_keys(run)
    shown = [v for v in run.variants if any(share_over_seeds(v, key) for key in keys)]

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(1.3 + 0.3 * len(shown))
        axes = figure.subplots()
        colors = (theme.ink, *theme.cycle)
        for place, variant in enumerate(shown):
            start = 0.0
            for index, key in enumerate(keys):
                share = share_over_seeds(variant, key)
                if share:
                    color = colors[index % len(colors)]
                    axes.barh(place, share.mean, left=start, color=color, height=0.62)
                    start += share.mean
            axes.text(start, place, f"  {start:.1f} %", va="center", fontsize=8, color=theme.muted)
        axes.set_yticks(range(len(shown)), [variant.title for variant in shown])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * max(axes.get_xlim()[1], 0.1))
        axes.set_xlabel("% of one optimizer step")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        handles = [
            Patch(color=colors[index % len(colors)], label=PART_NAMES.get(key, key))
            for index, key in enumerate(keys)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(keys), 7))
        return figure

    return Plot(
        "shares",
        "Share of a step",
        "Of the time of one optimizer step with forward and backward, mean over seeds: the root "
        "with its gradient, timed alone on matrices of the layer's size, and the hooks of each "
        "method. The monitor only watches. The rest is everything else in the network.",
        paint if shown else None,
        "No finished seed recorded what a step is spent on.",
        _share_alt(shown, keys),
    )


def _share_alt(shown: Sequence[Variant], keys: Sequence[str]) -> str:
    said = "; ".join(
        f"{v.title} "
        + ", ".join(
            f"{PART_NAMES.get(k, k)} {share.mean:.1f} %"
            for k in keys
            if (share := share_over_seeds(v, k))
        )
        for v in shown
    )
    return f"Share of one step: {said}."
