"""The page of a search: what was tried, the front, what mattered, and what to take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orthotrain.lab.report import style
from orthotrain.lab.report.figures import Looks
from orthotrain.lab.report.load import Run
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.rows import read_text
from orthotrain.lab.report.stats import short
from orthotrain.lab.report.style import Plot, Theme
from orthotrain.lab.report.tables import Cell, Own, Table

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Part = Mapping[str, Any]


def parts_of(run: Run) -> Sequence[Part]:
    """What tune.json says of each part; nothing before the search has ended."""
    file = run.path / "tune.json"
    found: Sequence[Part] = json.loads(read_text(file)).get("parts", ()) if file.exists() else ()
    return found


def _number(value: object) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value))
    return Cell(short(float(value)), exact=repr(value))


def _settings(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_number(value).shown}" for name, value in one["settings"].items())


def _values(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {short(value)}" for name, value in one["values"].items())


def _chosen(run: Run) -> Table:
    rows = [
        (
            Cell(part["variant"]),
            Cell(str(part["chosen"]["trial"])),
            Cell(_values(part["chosen"])),
            Cell(_settings(part["chosen"]), exact=json.dumps(part["chosen"]["settings"])),
            Cell(", ".join(part["chosen"]["at_edge"])),
        )
        for part in parts_of(run)
    ]
    return Table(
        "chosen", "Chosen settings", ("Variant", "Trial", "Reached", "Settings", "At the edge"),
        ("variant", "trial", "reached", "settings", "at_edge"), tuple(rows),
        empty="The search has not ended.",
        note="Chosen on the validation part, with seeds of the search alone. Beyond the edge of "
        "what was tried there may be a better value. This line trains all of them side by side: "
        f"orthotrain train --config {run.path / 'chosen.yaml'}",
    )  # fmt: skip


def _trials(run: Run) -> Table:
    rows = [
        (
            Cell(part["variant"]),
            Cell(str(one["trial"])),
            Cell("on the front" if one["trial"] in part["front"] else one["state"]),
            Cell(_values(one), exact=json.dumps(one["values"])),
            Cell(_settings(one), exact=json.dumps(one["settings"])),
            Cell(one["why"]),
        )
        for part in parts_of(run)
        for one in part["trials"]
    ]
    return Table(
        "trials", "All trials", ("Variant", "Trial", "State", "Reached", "Settings", "Why"),
        ("variant", "trial", "state", "reached", "settings", "why"), tuple(rows),
        note="Pruned: given up on its way, or a number that is not finite.",
    )  # fmt: skip


def _importance(run: Run) -> Table:
    rows = [
        (Cell(part["variant"]), Cell(aim), Cell(name), Cell(f"{share:.2f}", exact=repr(share)))
        for part in parts_of(run)
        for aim, shares in part["importance"].items()
        for name, share in shares.items()
    ]
    return Table(
        "importance", "Importance of the settings",
        ("Variant", "Objective", "Setting", "Share of the variance"),
        ("variant", "objective", "setting", "importance"), tuple(rows),
        note="By functional analysis of variance over the finished trials; sums to one. Of few "
        "trials it says little.",
    )  # fmt: skip


@dataclass(frozen=True)
class _Fronts:
    """Per part its trials, and the importance of its settings for the first objective."""

    def plot(self, run: Run, look: Looks) -> Plot:
        """The plot of a run."""
        parts = parts_of(run)

        def draw(theme: Theme) -> Figure:
            figure = style.new_figure(0.4 + 2.8 * len(parts))
            grid = figure.subplots(len(parts), 2, squeeze=False)
            for (left, right), part in zip(grid, parts, strict=True):
                _draw_trials(left, part, theme)
                _draw_importance(right, part, theme)
            return figure

        return Plot(
            "front", "Trials and what mattered",
            "Left: every finished trial; with several objectives those of the front are joined, "
            "with one they stand in their order. The star is the chosen one. Right: how much each "
            "setting explains of the first objective.",
            draw if parts else None, "The search has not ended.",
        )  # fmt: skip


def _draw_trials(axes: Axes, part: Part, theme: Theme) -> None:
    first, *others = part["objectives"]
    done = [one for one in part["trials"] if one["values"]]

    def place(one: Mapping[str, Any]) -> tuple[float, float]:
        x = one["values"][others[0]] if others else one["trial"]
        return float(x), float(one["values"][first])

    axes.set_title(part["variant"])
    axes.set_xlabel(others[0] if others else "trial")
    axes.set_ylabel(first)
    axes.plot(*zip(*map(place, done), strict=True), "o", color=theme.cycle[0], alpha=0.6)
    if others:
        front = sorted(place(one) for one in done if one["trial"] in part["front"])
        axes.plot(*zip(*front, strict=True), "-", color=theme.cycle[1], linewidth=1.4)
    axes.plot(*place(part["chosen"]), "*", color=theme.cycle[1], markersize=14)


def _draw_importance(axes: Axes, part: Part, theme: Theme) -> None:
    first = next(iter(part["objectives"]))
    shares = part["importance"].get(first, {})
    if not shares:
        style.say(axes, "too few finished trials", theme)
        axes.set_axis_off()
        return
    axes.barh(range(len(shares)), list(shares.values()), color=theme.cycle[0])
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_title(f"importance for {first}")


PAGE: Final = Page(
    lead=(_Fronts(),), results=(Own(_chosen), Own(_importance)), details=(Own(_trials),)
)
