"""A few letters beside each point, placed where they cover neither points nor each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.axes import Axes

_POINTS: Final = 7.8
# Where a label may stand, as shares of its width and height from the point, the nicest first.
_SIDES: Final = (
    (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1),
)  # fmt: skip
_GAPS: Final = (7.0, 13.0)  # between the middle of a point and its label, in points


@dataclass(frozen=True)
class Label:
    """What is written at a point.

    Attributes:
        text: May be empty; the point then only keeps others off.
        x: Of the point, as the axes count.
        y: Of the point.
        color: Of the text.
    """

    text: str
    x: float
    y: float
    color: str


@dataclass(frozen=True)
class _Box:
    left: float
    low: float
    right: float
    high: float

    def overlap(self, other: _Box) -> float:
        """The area that both cover."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.high, other.high) - max(self.low, other.low)
        return max(across, 0.0) * max(up, 0.0)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.high - self.low)


def place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Write the labels; call it last, it reads where the axes and their lines lie."""
    dot = axes.figure.dpi / 72.0  # pixels per point
    inside = axes.get_window_extent()
    frame = _Box(inside.x0, inside.y0, inside.x1, inside.y1)
    places = [tuple(map(float, axes.transData.transform((one.x, one.y)))) for one in labels]
    marks = [_around(x, y, 8.0 * dot, 8.0 * dot) for x, y in places]
    lines = list(_line_boxes(axes, dot))
    written: list[_Box] = []
    for one, (x, y) in sorted(zip(labels, places, strict=True), key=lambda pair: pair[1]):
        if not one.text:
            continue
        size = (0.62 * _POINTS * dot * len(one.text), 1.15 * _POINTS * dot)

        def cost(box: _Box) -> float:
            covered = sum(map(box.overlap, written)) * 6 + sum(map(box.overlap, marks)) * 4
            outside = box.area - box.overlap(frame)
            return covered + sum(map(box.overlap, lines)) + 4 * outside

        boxes = list(_candidates(x, y, size, dot))
        best = min(boxes, key=cost)
        written.append(best)
        axes.annotate(
            one.text, ((best.left + best.right) / 2, (best.low + best.high) / 2),
            xycoords="figure pixels", ha="center", va="center", fontsize=_POINTS,
            color=one.color, annotation_clip=False,
        ).set_in_layout(False)  # fmt: skip


def _candidates(x: float, y: float, size: tuple[float, float], dot: float) -> Iterator[_Box]:
    width, height = size
    for gap in _GAPS:
        for right, up in _SIDES:
            away = gap * dot * (0.8 if right and up else 1.0)
            across, over = right * (away + width / 2), up * (away + height / 2)
            yield _around(x + across, y + (0.8 if right else 1.0) * over, width, height)


def _around(x: float, y: float, width: float, height: float) -> _Box:
    return _Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _line_boxes(axes: Axes, dot: float) -> Iterator[_Box]:
    """Small boxes along every drawn line."""
    for line in axes.get_lines():
        ends = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
        for a, b in pairwise(ends):
            count = max(2, int(np.hypot(*(b - a)) / (3 * dot)))
            for share in np.linspace(0.0, 1.0, count):
                x, y = a + share * (b - a)
                yield _around(float(x), float(y), 3 * dot, 3 * dot)
