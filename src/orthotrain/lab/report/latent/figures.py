"""The figures of a run of generators: scores, orthonormality, conditions, OLR, training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orthotrain.lab.report import style
from orthotrain.lab.report.latent.gallery import traversal_plot
from orthotrain.lab.report.latent.look import hues
from orthotrain.lab.report.latent.measures import (
    LEAST_SPREAD,
    Score,
    hardly_varies,
    main_score,
    named_score,
)
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.paired import over_seeds
from orthotrain.lab.report.rows import Row, number
from orthotrain.lab.report.spectral.measures import OLR, rate_ratio
from orthotrain.lab.report.spectral.panels import Panel, curves_of, draw_panels, end_alt, field
from orthotrain.lab.report.style import Plot, Theme

_BANDS: Final = "Lines are means over seeds, bands reach from the lowest to the highest seed. "
# The scores in the figure, as many of these as a run has.
_SHOWN_AS_DOTS: Final = (
    *("alignment", "alignment_sefa", "disentanglement", "disentanglement_sefa"),
    *("vp", "vp_sefa", "frechet", "orthonormality_error"),
)
_MOST_DOTS: Final = 4
_TITLE_WIDTH: Final = 20


def all_plots(run: Run) -> tuple[Plot, ...]:
    """Every figure of the run."""
    return (
        scores_plot(run),
        weight_plot(run, sgd=False),
        *((weight_plot(run, sgd=True),) if _with_sgd(run, True) else ()),
        rates_plot(run),
        traversal_plot(run),
        training_plot(run),
    )


def _with_sgd(run: Run, sgd: bool) -> list[Variant]:
    return [variant for variant in run.variants if variant.name.endswith("-sgd") == sgd]


def scores_plot(run: Run) -> Plot:
    """The main score as trained and after SeFa, and what stands beside it, a row a variant."""
    main = main_score(run)
    found = [s for key in _SHOWN_AS_DOTS if (s := named_score(run, key)) is not None]
    # Fidelity always has its place.
    scores = [*[s for s in found if s.key != "frechet"][: _MOST_DOTS - 1], *found]
    scores = list(dict.fromkeys(scores))[:_MOST_DOTS]
    shown = [variant for variant in run.variants if variant.finished]

    def paint(theme: Theme) -> Figure:
        look = hues(run, theme)
        figure = style.new_figure(1.2 + 0.28 * len(shown))
        grid = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
        for axes, score in zip(grid, scores, strict=True):
            for place, variant in enumerate(shown):
                _row(axes, variant, score, place, look[variant.name].color)
            axes.set_title(fill(score.title, _TITLE_WIDTH))
            axes.set_xlabel({1: "more is better", -1: "less is better", 0: ""}[score.better])
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        grid[0].set_yticks(range(len(shown)), [variant.title for variant in shown])
        grid[0].invert_yaxis()
        return figure

    return Plot(
        "scores",
        "Scores of every variant",
        "Small dots are seeds, the large dot is their mean, bars are one standard deviation. Bars "
        "that overlap do not settle anything: the same seed has the same initial weights and data "
        "in every variant, so compare the differences by seed in the tables.",
        paint if shown and scores else None,
        "No finished seed has a score.",
        "" if main is None else _alt(main, shown),
    )


def _alt(main: Score, shown: Sequence[Variant]) -> str:
    said = "; ".join(f"{v.title} {over_seeds(v, main.measure).show(3)}" for v in shown)
    return f"{main.title} of every variant: {said}."


def _row(axes: Axes, variant: Variant, score: Score, place: int, color: str) -> None:
    spread = over_seeds(variant, score.measure)
    if not spread:
        return
    axes.plot(spread.values, [place] * len(spread.values), ".", color=color, alpha=0.5)
    axes.errorbar(
        spread.mean, place, xerr=None if math.isnan(spread.std) else spread.std, color=color,
        marker="o", markersize=6, capsize=3, elinewidth=1.3,
    )  # fmt: skip


def weight_plot(run: Run, *, sgd: bool) -> Plot:
    """Gram deviation of the latent weight, and conditions of gradient, step and weight."""
    variants = _with_sgd(run, sgd)
    panels = [
        Panel("|U U^T - I| of the latent weight", curves_of(variants, "latent", _deviation)),
        *(
            Panel(title, curves_of(variants, "condition", field(what, "condition_range")))
            for what, title in (
                ("weight", "Condition of the weight"),
                ("gradient", "Condition of the gradient"),
                ("update", "Condition of the executed step"),
            )
        ),
    ]
    name, with_what = ("weight-sgd", "SGD") if sgd else ("weight", "Adam")

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(7.6)
        grid = figure.subplots(2, 2, sharex=True)
        draw_panels(hues(run, theme), theme, list(grid.flat), panels)
        for axes in grid[1]:
            axes.set_xlabel("optimizer step")
        return figure

    title = f"The latent weight over training with {with_what}"
    return Plot(
        name,
        title,
        "NOG makes the gradient orthogonal, and not the weight: only a penalty or a retraction "
        "keeps its rows orthonormal. Adam divides each entry of the gradient by a size of its "
        "own, so the executed step is orthogonal only where it was made so. Of several latent "
        f"layers the median. {_BANDS}",
        paint if any(panel.curves for panel in panels) else None,
        "Neither the latent weight nor its gradient was recorded.",
        end_alt(title, panels),
    )


def _deviation(row: Row) -> float:
    return number(row, "gram_deviation")


def rates_plot(run: Run) -> Plot:
    """The optimal learning rate over the scheduled one, and how often it was used."""
    treated = [variant for variant in run.variants if "olr" in variant.treatments]
    panels = [
        Panel("Rate over scheduled rate", curves_of(treated, "method", _of_olr(rate_ratio))),
        Panel(
            "Share of steps used",
            curves_of(treated, "method", _of_olr(_used), log=False, reduce="mean"),
            log=False,
        ),
    ]

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(4.2)
        grid = list(figure.subplots(1, 2))
        grid[1].set_ylim(-0.03, 1.03)
        draw_panels(hues(run, theme), theme, grid, panels)
        for axes in grid:
            axes.set_xlabel("optimizer step")
        return figure

    return Plot(
        "rates",
        "What the optimal learning rate did",
        "It is used in a step only where it is positive and below the scheduled rate; the first "
        f"panel shows those steps alone, and nothing where there is none. {_BANDS}",
        paint if any(panel.curves for panel in panels) else None,
        "No variant recorded OLR.",
        end_alt("Optimal learning rate", panels),
    )


def _of_olr(value: Callable[[Row], float]) -> Callable[[Row], float]:
    return lambda row: value(row) if row.get("method") == OLR else math.nan


def _used(row: Row) -> float:
    used = row.get("used")
    return float(used) if isinstance(used, bool) else math.nan


def training_plot(run: Run) -> Plot:
    """Losses of both players."""
    panels = [
        Panel(title, curves_of(run.variants, "step", _number_of(key), log=False), log=False)
        for title, key in (("Generator", "loss"), ("Discriminator", "discriminator_loss"))
    ]

    def paint(theme: Theme) -> Figure:
        figure = style.new_figure(4.6)
        grid = list(figure.subplots(1, 2))
        draw_panels(hues(run, theme), theme, grid, panels)
        for axes in grid:
            axes.set_xlabel("optimizer step")
        return figure

    return Plot(
        "training",
        "Losses of both players",
        "The losses of two players say whether one of them has given up, and nothing about the "
        f"samples. {_BANDS}",
        paint if any(panel.curves for panel in panels) else None,
        "No loss was recorded.",
        end_alt("Losses", panels),
    )


def _number_of(key: str) -> Callable[[Row], float]:
    return lambda row: number(row, key)


def missing(run: Run) -> Sequence[str]:
    """What a run of generators lacks, one sentence each."""
    notes = []
    if run.baseline is None or not run.baseline.finished:
        notes.append(
            f"The variant '{run.baseline_name}' has no finished seed, so no treatment has "
            "anything to be held against."
        )
    for variant in run.variants:
        still = [str(seed.seed) for seed in variant.finished if hardly_varies(seed)]
        if still:
            notes.append(
                f"{variant.title}, seed {', '.join(still)}: some factor of its images has less "
                f"than {LEAST_SPREAD:g} of its spread in real ones, so what its coordinates and "
                "paths do is not scored."
            )
    return notes
