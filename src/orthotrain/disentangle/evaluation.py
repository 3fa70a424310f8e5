"""What an evaluation found: one row a score, with what it is worth, printed as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_HEADINGS = ("score", "value", "spread", "chance", "real vs real", "note")
_LEFT = {"score", "note"}


@dataclass(frozen=True)
class Score:
    """One number, and what it has to be read against.

    Attributes:
        name: With its feature space and number of samples where it has them.
        value: The score.
        spread: Of the value; ``note`` says over what. None where it was not measured.
        chance: What comes out where the latents mean nothing. None where that is not defined.
        chance_spread: Its standard deviation over permutations, where it was measured so.
        floor: What real images get against other real ones at the same number of samples. None
            where no real images enter.
        note: What is better, and what the spread is of.
    """

    name: str
    value: float
    spread: float | None = None
    chance: float | None = None
    chance_spread: float | None = None
    floor: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All scores of one generator; ``print`` shows a table.

    Attributes:
        scores: The rows.
        activeness: Of each coordinate that is a factor.
        activeness_spread: Its standard error over the latents.
        settings: What the numbers depend on: seed, sizes, budgets.
    """

    scores: tuple[Score, ...]
    activeness: tuple[float, ...]
    activeness_spread: tuple[float, ...]
    settings: Mapping[str, Any]

    def __getitem__(self, name: str) -> Score:
        """The row of that name.

        Raises:
            KeyError: There is none; the message lists those there are.
        """
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(f"no score {name!r}; there are {', '.join(s.name for s in self.scores)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dicts, for a run record; not finite is None."""
        return {
            "scores": [
                {key: _plain(value) for key, value in vars(score).items()} for score in self.scores
            ],
            "activeness": [_plain(x) for x in self.activeness],
            "activeness_spread": [_plain(x) for x in self.activeness_spread],
            "settings": dict(self.settings),
        }

    def __str__(self) -> str:
        active = "  ".join(
            f"{dim}: {value:.3g} +- {spread:.1g}"
            for dim, value, spread in sorted(
                zip(
                    range(len(self.activeness)),
                    self.activeness,
                    self.activeness_spread,
                    strict=True,
                ),
                key=lambda row: -row[1],
            )
        )
        return "\n".join([*_table([_cells(s) for s in self.scores]), f"activeness  {active}"])


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cells(score: Score) -> tuple[str, ...]:
    value, spread, chance, floor = (
        "-" if x is None else f"{x:.4g}"
        for x in (score.value, score.spread, score.chance, score.floor)
    )
    if score.chance_spread is not None:
        chance += f" +- {score.chance_spread:.1g}"
    return (score.name, value, spread, chance, floor, score.note)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns under a ruled heading."""
    padded = []
    for heading, *cells in zip(_HEADINGS, *rows, strict=True):
        width = max(len(text) for text in (heading, *cells))
        padded.append(
            [
                text.ljust(width) if heading in _LEFT else text.rjust(width)
                for text in (heading, "-" * width, *cells)
            ]
        )
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
