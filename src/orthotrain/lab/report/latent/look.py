"""How the variants of a run of generators are told apart: a hue a treatment, dashes a sum."""

from __future__ import annotations

from typing import Final

from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.spectral.style import Hue, LineStyle
from orthotrain.lab.report.style import DARK, Theme

# The place of a treatment's hue in the theme's cycle, the one that gives a sum its hue first.
_CYCLE: Final = {"retraction": 2, "ol": 3, "olr": 1, "nog-update": 5, "nog": 0}
# The rivals are browns and greys, away from what is done to the latent weight.
_RIVALS: Final = {
    "hessian": ("#8a5a2b", "#c79a6c"),
    "orojar": ("#5d6b2f", "#a9ba6d"),
    "vp": ("#6b4a86", "#b79bd0"),
}


def hues(run: Run, theme: Theme) -> dict[str, Hue]:
    """By name: nothing done in ink, treatments in colors, sums and other rates broken."""
    return {variant.name: _hue(variant, theme) for variant in run.variants}


def _hue(variant: Variant, theme: Theme) -> Hue:
    line: LineStyle = "-"
    if len(variant.treatments) > 1:
        line = "--"
    elif "-lr" in variant.name:
        line = ":"
    return Hue(variant.title.removesuffix(", SGD"), _color(variant, theme), line)


def _color(variant: Variant, theme: Theme) -> str:
    for name, colors in _RIVALS.items():
        if name in variant.treatments:
            return colors[theme is DARK]
    main = next((name for name in _CYCLE if name in variant.treatments), None)
    return theme.ink if main is None else theme.cycle[_CYCLE[main]]
