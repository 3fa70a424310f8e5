"""The figures of a spectral run: errors, conditioning in four senses, scale, training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orthotrain.lab.report import style
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.paired import over_seeds
from orthotrain.lab.report.rows import Row, number
from orthotrain.lab.report.spectral.measures import (
    SENSES,
    TEST_ERROR,
    find,
    group_of,
)
from orthotrain.lab.report.spectral.panels import (
    BANDS,
    Panel,
    curves_of,
    draw_panels,
    end_alt,
    field,
)
from orthotrain.lab.report.spectral.published import PUBLISHED_CONDITIONS, PUBLISHED_STEPS
from orthotrain.lab.report.spectral.published_tables import twin_of
from orthotrain.lab.report.spectral.style import Hue, hues, logarithmic, name_ends, shown_in
from orthotrain.lab.report.style import Plot, Theme

_GROUPS: Final = ("reference", "single", "combination", "fixed")
# --- errors -------------------------------------------------------------------------------------


def error_plot(run: Run) -> Plot:
    """Test error of every variant: seeds, mean and deviation, grouped."""
    ordered = [
        (
            group,
            [v for v in run.variants if group_of(run, v) == group and over_seeds(v, TEST_ERROR)],
        )
        for group in _GROUPS
    ]
    shown = [(group, variants) for group, variants in ordered if variants]
    root = find(run)

    def paint(theme: Theme) -> Figure:
        look = hues(run, theme)
        count = sum(len(variants) for _, variants in shown)
        figure = style.new_figure(1.0 + 0.3 * count + 0.15 * len(shown))
        axes = figure.subplots()
        if root is not None and (spread := over_seeds(root, TEST_ERROR)):
            axes.axvline(spread.mean, color=theme.muted, linewidth=1.0, linestyle=(0, (2, 3)))
        place, ticks = 0.0, []
        for _, variants in shown:
            for variant in variants:
                _error_row(axes, variant, place, look[variant.name])
                ticks.append((place, variant.title))
                place += 1.0
            place += 0.5
        axes.set_yticks([at for at, _ in ticks], [title for _, title in ticks])
        axes.set_ylim(place - 0.8, -0.7)
        axes.set_xlabel("test error (%)")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return figure

    return Plot(
        "error",
        "Test error of every variant",
        "Further left is better. Small dots are seeds, the large dot is their mean, bars are one "
        "standard deviation. The dotted line is the mean of the root alone. Bars that overlap do "
        "not settle anything: the same seed has the same initial weights and batches in every "
        "variant, so compare the differences by seed in the tables.",
        paint if shown else None,
        "No finished seed has a test accuracy.",
        _error_alt([variant for _, variants in shown for variant in variants]),
    )


def _error_alt(variants: Sequence[Variant]) -> str:
    said = ", ".join(f"{v.title} {over_seeds(v, TEST_ERROR).show(2)} %" for v in variants)
    return f"Test error of every variant, mean and standard deviation over seeds: {said}."


def _error_row(axes: Axes, variant: Variant, place: float, hue: Hue) -> None:
    spread = over_seeds(variant, TEST_ERROR)
    axes.plot(
        spread.values, [place] * len(spread.values), ".", color=hue.color, alpha=0.5, markersize=6
    )
    axes.errorbar(
        spread.mean, place, xerr=None if math.isnan(spread.std) else spread.std, color=hue.color,
        marker="o", markersize=7, capsize=3, elinewidth=1.3,
        markerfacecolor="none" if hue.line != "-" else hue.color,
    )  # fmt: skip


# --- conditioning -------------------------------------------------------------------------------


_CONDITION: Final = {
    "single": ("conditions", "Condition over training: one treatment at a time"),
    "combination": ("conditions-combined", "Condition over training: combinations"),
    "fixed": ("conditions-fixed", "Condition over training: weight norm held fixed"),
}


def condition_plot(run: Run, group: str) -> Plot:
    """The covariance's condition number over training, a panel a sense."""
    variants = shown_in(run, group)
    panels = [
        Panel(
            f"{sense.title[0].upper()}{sense.title[1:]}",
            curves_of(variants, "condition", field("covariance", sense.key)),
        )
        for sense in SENSES
    ]
    name, title = _CONDITION[group]

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(7.6)
        grid = figure.subplots(2, 2, sharex=True)
        draw_panels(hues(run, theme), theme, list(grid.flat), panels)
        for axes in grid[1]:
            axes.set_xlabel("optimizer step")
        for axes in grid[:, 0]:
            axes.set_ylabel("condition of the covariance")
        return figure

    return Plot(
        name,
        title,
        "The covariance that enters the spectral layer, lower is better. On the range: largest "
        "over smallest eigenvalue that counts as non-zero. With the ridge: what the root works "
        "on; with a fixed ridge and a covariance that lacks rank it is 1 + largest / ridge, so it "
        "follows the scale of the weight. Naive: largest over smallest eigenvalue in that "
        "precision; where the covariance lacks rank the smallest is rounding. "
        f"{BANDS}Infinite numbers are left out; the table says how many there were.",
        paint if any(panel.curves for panel in panels) else None,
        "No condition of a covariance was recorded for these variants.",
        end_alt(title, panels),
    )


def published_plot(run: Run) -> Plot:
    """The digitised curves, and ours of the same methods in naive float32 beside them."""
    twins = [v for known in PUBLISHED_CONDITIONS if (v := twin_of(run, known.twin)) is not None]
    curves = curves_of(twins, "condition", field("covariance", "condition_float32"))

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(4.9)
        left, right = figure.subplots(1, 2, sharey=True)
        left.set_yscale("log")
        palette = (*theme.cycle, theme.ink, theme.muted)
        ends = []
        for index, known in enumerate(PUBLISHED_CONDITIONS):
            twin = twin_of(run, known.twin)
            look = hues(run, theme)[twin.name].color if twin is not None else None
            color = look or palette[index % len(palette)]
            left.plot(
                PUBLISHED_STEPS, known.values, color=color, linestyle=(0, (1, 2)), linewidth=1.0,
                marker=style.MARKERS[index % len(style.MARKERS)], markersize=5.5,
            )  # fmt: skip
            ends.append((known.name, color, float(PUBLISHED_STEPS[-1]), known.values[-1]))
        left.set_xlim(0, 1.02 * PUBLISHED_STEPS[-1])
        left.set_title("Published (digitised, ±10 %)")
        left.set_ylabel("condition of the covariance")
        draw_panels(hues(run, theme), theme, [right], [Panel("This run, naive in float32", curves)])
        for axes in (left, right):
            axes.set_xlabel("optimizer step")
        left.set_xticks(PUBLISHED_STEPS, [f"{step // 1000}k" for step in PUBLISHED_STEPS])
        logarithmic(left)
        name_ends(left, ends)
        return figure

    return Plot(
        "published",
        "Beside the published condition curves",
        "Left: decorrelated batch norm at the published scale, four points of each curve read "
        "out of the authors' figure to about 10 %. Right: this run. In which sense and precision "
        "the published numbers were computed is not known, and data, width, number of steps and "
        "learning rate differ: compare the order of the methods, not the heights. " + BANDS,
        paint,
        "",
        "Published condition numbers at steps 1k, 20k, 60k and 130k beside those of this run.",
    )


def _columns(run: Run) -> list[list[Variant]]:
    """References and single treatments, and the rest, each as readable as there is room for."""
    left = [v for v in run.variants if group_of(run, v) in ("reference", "single")]
    right = [v for v in run.variants if group_of(run, v) in ("combination", "fixed")]
    return [column for column in (left, right) if column]


def scale_plot(run: Run) -> Plot:
    """Largest eigenvalue, weight norm and numerical rank over training."""
    columns = _columns(run)
    panels = [
        Panel(title, curves_of(variants, "condition", value, log=log), log)
        for title, value, log in (
            ("Largest eigenvalue of the covariance", field("covariance", "largest"), True),
            ("Weight norm (Frobenius)", field("weight", "norm"), True),
            ("Numerical rank of the covariance", field("covariance", "rank"), False),
        )
        for variants in columns
    ]

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(9.0)
        grid = figure.subplots(3, len(columns), sharex=True, sharey="row", squeeze=False)
        for axes in grid[-1]:
            axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        draw_panels(hues(run, theme), theme, list(grid.flat), panels)
        for axes in grid[-1]:
            axes.set_xlabel("optimizer step")
        return figure

    return Plot(
        "scale",
        "Scale of the spectrum and of the weight",
        "A norm after the layer makes the network blind to the scale of the weight before it, a "
        "fixed ridge does not: a larger weight has a larger covariance against the same ridge. So "
        "a treatment that only changes this scale changes the condition with such a ridge, too. "
        "Lines are means over seeds, bands reach from the lowest to the highest seed.",
        paint if any(panel.curves for panel in panels) else None,
        "No covariance and no weight was recorded.",
        end_alt("Scale over training", panels),
    )


def training_plot(run: Run) -> Plot:
    """Training loss and validation error over optimizer steps, single treatments and the rest."""
    columns = _columns(run)
    panels = [
        panel
        for variants in columns
        for panel in (
            Panel("Training loss", curves_of(variants, "step", lambda row: number(row, "loss"))),
            Panel(
                "Validation error (%)",
                curves_of(variants, "eval", _validation_error, log=False),
                log=False,
                late=True,
            ),
        )
    ]

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(0.6 + 3.4 * len(columns))
        grid = figure.subplots(len(columns), 2, sharex=True, squeeze=False)
        draw_panels(hues(run, theme), theme, list(grid.flat), panels)
        for axes in grid[-1]:
            axes.set_xlabel("optimizer step")
        return figure

    return Plot(
        "training",
        "Training curves",
        "Above: the references and single treatments; below: combinations and fixed norms. "
        "Loss: geometric mean over seeds; error: mean. Bands reach from the lowest to the "
        "highest seed, each point is the median of one of 40 equal stretches. The error's axis "
        "ends at the level reached after a fifth of the evaluations.",
        paint if any(panel.curves for panel in panels) else None,
        "No training loss and no validation accuracy was recorded.",
        end_alt("Training curves", panels),
    )


def _validation_error(row: Row) -> float:
    if row.get("split") != "validation":
        return math.nan
    return 100.0 * (1.0 - number(row, "accuracy"))
