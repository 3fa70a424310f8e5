"""The picture of ``orthotrain inspect``: how spectra fall, and what sizes are left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orthotrain.lab.report.drawing import logarithmic
from orthotrain.lab.report.style import LIGHT, Theme, new_figure, styled, to_png
from orthotrain.lowrank.state_dicts.survey import ENERGIES

if TYPE_CHECKING:  # drawing loads matplotlib
    from matplotlib.axes import Axes

    from orthotrain.lowrank.state_dicts import Survey
    from orthotrain.lowrank.state_dicts.survey import WeightSurvey

# The largest layers are drawn; names of more do not fit.
_MOST: Final = 24
# Less energy than this is rounding of float32 weights.
_LEAST: Final = 1e-8


def draw_survey(found: Survey) -> bytes:
    """A PNG: per layer the energy that a rank loses and its size; the whole model at budgets."""
    drawn = sorted(found.weights, key=lambda weight: -weight.stored)[:_MOST]
    drawn = [weight for weight in found.weights if weight in drawn]
    with styled(LIGHT):
        figure = new_figure(4.2 + 0.24 * len(drawn))
        curves, sizes, budgets = figure.subplots(
            3, 1, height_ratios=(2.2, 0.4 + 0.2 * len(drawn), 1.2)
        )
        _curves(curves, drawn, LIGHT)
        _sizes(sizes, drawn, LIGHT)
        _budgets(budgets, found, LIGHT)
        of = f", the {len(drawn)} largest of {len(found.weights)} layers"
        title = found.source + of * (len(drawn) < len(found.weights))
        figure.suptitle(title, x=0.01, ha="left")
        return to_png(figure)


def _curves(axes: Axes, drawn: list[WeightSurvey], theme: Theme) -> None:
    """Energy outside a rank, against the rank as a share of that at which factors pay."""
    from matplotlib import colormaps

    colors = colormaps["viridis"]
    for i, weight in enumerate(drawn):
        squares = weight.spectrum.square().sum(0)
        total = float(squares.sum())
        if not total or not weight.break_even_rank:
            continue
        outside = (squares.flip(0).cumsum(0).flip(0) / total).tolist()
        ranks = [rank / weight.break_even_rank for rank in range(len(outside))]
        color = colors(i / max(1, len(drawn) - 1))
        axes.plot(ranks, [max(share, _LEAST) for share in outside], color=color, linewidth=1.1)
    axes.axvline(1.0, color=theme.muted, linewidth=0.8, linestyle=":")
    for energy in ENERGIES:
        axes.axhline(1 - energy, color=theme.muted, linewidth=0.8, linestyle="--")
        axes.annotate(f"{100 * energy:g} %", (1.04, 1 - energy), color=theme.muted, fontsize=8)
    axes.set(
        ylim=(1e-5, 1.2), xlim=(0, 1.1), xlabel="rank / largest rank that pays",
        ylabel="energy lost", title="Energy that a rank loses: first layer dark, last layer bright",
    )  # fmt: skip
    logarithmic(axes)


def _sizes(axes: Axes, drawn: list[WeightSurvey], theme: Theme) -> None:
    """Numbers of each layer as it is and at three energies, one bar over the other."""
    places = range(len(drawn))
    axes.barh(places, [w.stored for w in drawn], color=theme.empty, label="as it is")
    for j in (2, 1, 0):
        label = f"{100 * drawn[0].at[j].energy:g} % of energy" if drawn else ""
        stored = [w.at[j].stored for w in drawn]
        axes.barh(places, stored, color=theme.cycle[2 - j], label=label)
    axes.set_yticks(places, [weight.name for weight in drawn], fontsize=8)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_title("Numbers stored", pad=22)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8)
    _numbers_below(axes)


def _numbers_below(axes: Axes) -> None:
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _budgets(axes: Axes, found: Survey, theme: Theme) -> None:
    """What the whole model stores at budgets, and the energy its cut layers keep."""
    rows = [("as it is", found.stored, "")]
    for budget in found.budgets:
        kept = "" if budget.kept is None else f"cut layers keep {100 * budget.kept:.1f} % of energy"
        words = kept if budget.stored is not None else "out of reach"
        rows.append((f"{100 * budget.share:.0f} %", budget.stored or 0, words))
    axes.barh(range(len(rows)), [stored for _, stored, _ in rows], color=theme.cycle[0], height=0.6)
    for i, (_, stored, words) in enumerate(rows):
        axes.annotate(f" {f'{stored:,}  ' if stored else ''}{words}", (stored, i), va="center")
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_xlim(0, 1.6 * max(1, found.stored))
    axes.invert_yaxis()
    of = f", a share of the {found.dense:,} of its dense form" * (found.dense != found.stored)
    axes.set_title("Numbers of the whole model at a budget" + of)
    _numbers_below(axes)
