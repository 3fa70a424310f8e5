"""What became of an attack: outcomes counted by class, each class below a ceiling that only falls.

``python -m attack`` runs all attacks at their full numbers and prints their table. The tests run
the same attacks with fewer repetitions: a sample by default, each family in the slow run.
"""

import json
import os
from collections import Counter
from pathlib import Path

#: A file that gets one JSON object per attack.
TABLE = "ORTHOTRAIN_ATTACKS"


def times(few, many):
    """How often something is repeated: ``many`` times by ``python -m attack``, else ``few``."""
    return many if TABLE in os.environ else few


class Counts:
    """Outcomes of one attack by class.

    Args:
        attack: What is attacked, and how.
        ceilings: Most outcomes of each class that is not right; a class without one may occur.
    """

    def __init__(self, attack, **ceilings):
        self.attack, self.ceilings = attack, ceilings
        self.found, self.examples = Counter(dict.fromkeys(ceilings, 0)), {}

    def add(self, outcome, example):
        """One outcome, and what led to it."""
        self.found[outcome] += 1
        self.examples.setdefault(outcome, example)

    def check(self, *, least):
        """Print the counts, and hold them below their ceilings.

        Args:
            least: Fewest outcomes of all classes together: an attack that did not happen, fails.
        """
        total = sum(self.found.values())
        print(f"{self.attack}: {total}, of which {dict(self.found)}")  # noqa: T201
        if TABLE in os.environ:
            with Path(os.environ[TABLE]).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"attack": self.attack, **self.found}) + "\n")
        assert total >= least, f"{self.attack}: {total} of at least {least} took place"
        for outcome, most in self.ceilings.items():
            example = self.examples.get(outcome)
            assert self.found[outcome] <= most, f"{outcome}: {self.found[outcome]}, as {example}"
