"""What decides between branch and rivals: bits per byte, or accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from orthotrain.lab.report.load import Run, SeedRun
from orthotrain.lab.report.rows import number
from orthotrain.lab.report.stats import Measure


@dataclass(frozen=True)
class Goal:
    """The measure that decides.

    Attributes:
        field: Its name in lines of the record, and behind ``test_`` and ``validation_`` in
            results.
        of_part: The measure on a part of the data, ``"test"`` or ``"validation"``.
        word: Unit of a difference in a sentence.
        digits: Decimals of a difference.
        name: In questions and captions, such as ``loss``.
        scale: What a line's number is multiplied by to be in the unit of the measure.
    """

    field: str
    of_part: Callable[[str], Measure]
    word: str
    digits: int
    name: str
    scale: float = 1.0

    def measure(self, run: Run) -> Measure:
        """On the test part where any seed read it, else on the validation part."""
        test = self.of_part("test")
        read = any(test.over_seeds(variant) for variant in run.variants)
        return test if read else self.of_part("validation")

    @property
    def less(self) -> bool:
        """Whether less is better."""
        return self.of_part("test").better == "less"

    def look(self, title: str, key: str, read: Callable[[SeedRun], float]) -> Measure:
        """A measure of looks at the validation part while training, in the same unit."""
        own = self.of_part("validation")
        return Measure(
            key, title, lambda seed: self.scale * read(seed), own.unit, own.digits, own.better
        )

    def end(self, seed: SeedRun) -> float:
        """The last look at the validation part while training, as recorded."""
        looks = [number(row, self.field) for row in seed.of_kind("eval")]
        return looks[-1] if looks else math.nan
