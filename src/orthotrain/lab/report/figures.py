"""The figures of a report: each is a title, a caption and a drawing, or says why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from orthotrain.lab.report import style
from orthotrain.lab.report.heatmaps import rank_plot, stability_plot
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.series import Curve, curve, held_curve
from orthotrain.lab.report.style import Look, Plot, Theme
from orthotrain.lab.report.tables import MIB, Spread, over_seeds

_BINS: Final = 80


def all_plots(run: Run) -> tuple[Plot, ...]:
    """The figures of a run in the order of the page."""
    return (
        accuracy_plot(run),
        curves_plot(run),
        size_plot(run),
        rank_plot(run),
        stability_plot(run),
        cost_plot(run),
    )


def accuracy_plot(run: Run) -> Plot:
    """Test accuracy against stored and against trainable numbers."""
    shown = [v for v in run.variants if over_seeds(v, "test_accuracy")]
    usable = bool(shown) and math.isfinite(run.dense_size)

    def draw(theme: Theme) -> Figure:
        look = style.looks(run, theme)
        figure = style.new_figure(4.0)
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, key in ((left, "stored"), (right, "trainable")):
            axes.axvline(100.0, color=theme.muted, linewidth=1.0, linestyle=(0, (2, 3)))
            for variant in shown:
                _accuracy_points(axes, variant, key, look[variant.name], 100.0 / run.dense_size)
            axes.set_xlim(left=0.0, right=max(106.0, axes.get_xlim()[1]))
            axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        left.set_xlabel("stored parameters, % of the dense network")
        right.set_xlabel("trainable parameters, % of the dense network")
        left.set_ylabel("test accuracy (%)")
        folded = Line2D(
            [], [], color=theme.muted, marker="o", markerfacecolor="none", linestyle="none",
            label="stored after folding",
        )  # fmt: skip
        has_folded = any(_folds(v) for v in shown)
        style.marker_legend(
            figure, [look[v.name] for v in shown], extra=[folded] if has_folded else []
        )
        return figure

    return Plot(
        "accuracy",
        "Accuracy against size",
        "Further up and further left is better. Small dots are seeds, the large marker is their "
        "mean, bars are one standard deviation. Left: every number the trained network keeps, "
        "frozen factors included; the hollow marker is what remains once the core is folded into "
        "one factor for deployment. Right: the numbers that were trained at the end, the measure "
        "the paper uses; it leaves out the frozen factors. The vertical line is the dense network.",
        draw if usable else None,
        "No finished seed has both a test accuracy and a size.",
    )


def _folds(variant: Variant) -> bool:
    stored, folded = over_seeds(variant, "stored"), over_seeds(variant, "stored_folded")
    return bool(folded) and bool(stored) and folded.mean < stored.mean


def _accuracy_points(axes: Axes, variant: Variant, key: str, look: Look, scale: float) -> None:
    pairs = [
        (seed.final(key) * scale, seed.final("test_accuracy") * 100) for seed in variant.finished
    ]
    kept = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if not kept:
        return
    x, y = Spread.of(pair[0] for pair in kept), Spread.of(pair[1] for pair in kept)
    axes.plot(x.values, y.values, ".", color=look.color, alpha=0.55, markersize=6)
    axes.errorbar(
        x.mean, y.mean, xerr=_bar(x), yerr=_bar(y), color=look.color, marker=look.marker,
        markersize=8, capsize=3, elinewidth=1.2,
    )  # fmt: skip
    if key == "stored" and _folds(variant):
        folded = over_seeds(variant, "stored_folded", scale=scale).mean
        axes.annotate(
            "", (folded, y.mean), (x.mean, y.mean),
            arrowprops={"arrowstyle": "-", "color": look.color, "alpha": 0.5, "linestyle": ":"},
        )  # fmt: skip
        axes.plot(folded, y.mean, look.marker, color=look.color, markerfacecolor="none")


def _bar(spread: Spread) -> float | None:
    return None if math.isnan(spread.std) else spread.std


def curves_plot(run: Run) -> Plot:
    """Training loss and validation accuracy over optimizer steps."""
    losses = _curves(run, "step", "loss", bins=_BINS)
    accuracies = _curves(run, "eval", "accuracy", split="validation", scale=100.0)

    def draw(theme: Theme) -> Figure:
        look = style.looks(run, theme)
        figure = style.new_figure(3.9)
        left, right = figure.subplots(1, 2)
        for axes, curves in ((left, losses), (right, accuracies)):
            for variant, line in curves:
                style.draw_curve(axes, line, look[variant.name])
                style.mark_switch(axes, variant, look[variant.name])
            axes.set_xlabel("optimizer step")
            axes.set_xlim(left=0)
        left.set_ylabel("training loss")
        _scale_loss(left, [line for _, line in losses])
        right.set_ylabel("validation accuracy (%)")
        _cut_early(right, [line for _, line in accuracies])
        for axes, curves in ((left, losses), (right, accuracies)):
            if not curves:
                style.say(axes, "nothing recorded", theme)
        style.line_legend(figure, [look[v.name] for v in run.variants if v.seeds])
        return figure

    return Plot(
        "curves",
        "Training curves",
        "Lines are means over seeds, bands reach from the lowest to the highest seed. The "
        f"training loss is the median within each of {_BINS} equal stretches. Dotted lines: the "
        "mean step at which a variant left its dense phase. The accuracy axis starts at the level "
        "reached after a fifth of the evaluations, so that the end can be told apart.",
        draw if losses or accuracies else None,
        "No training loss and no validation accuracy was recorded.",
    )


def _curves(
    run: Run, kind: str, key: str, *, bins: int | None = None, split: str | None = None,
    scale: float = 1.0,
) -> list[tuple[Variant, Curve]]:  # fmt: skip
    """The curve of each variant that recorded the field."""
    found = [(v, curve(v, kind, key, bins=bins, split=split)) for v in run.variants]
    return [(variant, _scaled(line, scale)) for variant, line in found if line is not None]


def _held_curves(run: Run, *keys: str, scale: float) -> list[tuple[Variant, Curve]]:
    """The sum of size fields of each variant that recorded all of them."""
    found = [(v, held_curve(v, keys)) for v in run.variants]
    return [(variant, _scaled(line, scale)) for variant, line in found if line is not None]


def _scaled(line: Curve, scale: float) -> Curve:
    return Curve(line.x, line.mean * scale, line.low * scale, line.high * scale)


def _scale_loss(axes: Axes, curves: Sequence[Curve]) -> None:
    """Logarithmic where losses span a decade, with labels that read as plain numbers."""
    lowest = min((float(line.low.min()) for line in curves), default=0.0)
    highest = max((float(line.high.max()) for line in curves), default=0.0)
    if lowest > 0 and highest > 10 * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _cut_early(axes: Axes, curves: Sequence[Curve]) -> None:
    levels = [float(line.low[len(line.low) // 5 :].min()) for line in curves]
    if levels:
        top = max(float(line.high.max()) for line in curves)
        bottom = min(levels)
        margin = 0.04 * (top - bottom) or 0.5
        axes.set_ylim(bottom - margin, top + margin)


def size_plot(run: Run) -> Plot:
    """Stored and trainable numbers over training, in percent of the dense network."""
    scale = 100.0 / run.dense_size if math.isfinite(run.dense_size) else math.nan
    panels = [
        (title, _held_curves(run, key, scale=scale))
        for title, key in (("Stored", "stored"), ("Trainable", "trainable"))
    ]
    usable = math.isfinite(scale) and any(curves for _, curves in panels)

    def draw(theme: Theme) -> Figure:
        look = style.looks(run, theme)
        figure = style.new_figure(3.6)
        for axes, (title, curves) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            for variant, line in curves:
                _stairs(axes, line, look[variant.name])
            axes.set_title(title)
            axes.set_xlabel("optimizer step")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        figure.axes[0].set_ylabel("% of the dense network")
        style.line_legend(figure, [look[v.name] for v in run.variants if v.seeds])
        return figure

    return Plot(
        "size",
        "Size while training",
        "The two sizes part at the switch: the core alone is trained, but its frozen factors are "
        "stored beside it, so the stored size falls below the dense one only once ranks are below "
        "about half. Bands reach from the lowest to the highest seed.",
        draw if usable else None,
        "No size was recorded.",
    )


def _stairs(axes: Axes, line: Curve, look: Look) -> None:
    axes.fill_between(
        line.x, line.low, line.high, color=look.color, alpha=0.16, linewidth=0, step="post"
    )
    axes.step(line.x, line.mean, where="post", color=look.color, linestyle=look.line)


def cost_plot(run: Run) -> Plot:
    """Time of a step and training memory over optimizer steps."""
    times = _curves(run, "step", "step_ms", bins=_BINS)
    memory = _held_curves(run, *(key for key, _ in _MEMORY), scale=1 / MIB)

    def draw(theme: Theme) -> Figure:
        look = style.looks(run, theme)
        figure = style.new_figure(3.9)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 1.0))
        for variant, line in times:
            style.draw_curve(left, line, look[variant.name])
            style.mark_switch(left, variant, look[variant.name])
        for variant, line in memory:
            _stairs(middle, line, look[variant.name])
        _memory_bars(right, run, theme)
        for axes, title in ((left, "Time of a step (ms)"), (middle, "Training memory (MiB)")):
            axes.set_title(title)
            axes.set_xlabel("optimizer step")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
        for axes, curves in ((left, times), (middle, memory)):
            if not curves:
                style.say(axes, "nothing recorded", theme)
        style.line_legend(figure, [look[v.name] for v in run.variants if v.seeds])
        return figure

    return Plot(
        "cost",
        "Time and memory",
        "Time: wall time of forward, backward and optimizer step with all hooks, median within "
        f"each of {_BINS} stretches; the few steps that decompose weights hardly move a median, "
        "the table's 'whole training' contains them. Dotted lines: the switch. Memory: weights, "
        "gradients and optimizer state as measured where the run recorded a change; before its "
        "first step an optimizer has no state, and activations are not in it. Bands reach from "
        "the lowest to the highest seed. Right: what the memory at the end consists of.",
        draw if times or memory else None,
        "Neither the time of a step nor memory was recorded.",
    )


# What training memory consists of, and how strongly each part is drawn.
_MEMORY: Final = (
    ("weight_bytes", 1.0),
    ("gradient_bytes", 0.6),
    ("state_bytes", 0.3),
)


def _memory_bars(axes: Axes, run: Run, theme: Theme) -> None:
    look = style.looks(run, theme)
    shown = [v for v in run.variants if over_seeds(v, "weight_bytes")]
    for place, variant in enumerate(shown):
        start = 0.0
        for key, alpha in _MEMORY:
            size = over_seeds(variant, key, scale=1 / MIB)
            if size:
                axes.barh(place, size.mean, left=start, color=look[variant.name].color, alpha=alpha)
                start += size.mean
    if not shown:
        style.say(axes, "no finished seed", theme)
    axes.set_yticks(range(len(shown)), [look[v.name].label for v in shown])
    axes.invert_yaxis()
    axes.set_title("At the end (MiB)")
    axes.set_xlabel("strong to faint:\nweights, gradients, state")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
