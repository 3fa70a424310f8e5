"""The variants of the table of rivals.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orthotrain.extras import missing_package
from orthotrain.lab.experiments.branches.variants import BranchedVariant, dense, narrow
from orthotrain.lab.experiments.rivals.config import RivalsRun
from orthotrain.lab.experiments.rivals.table import HALF, RIVALS, Rival, installed
from orthotrain.lab.experiments.search import listed_rates
from orthotrain.lab.run.space import Aim, Search


@dataclass(frozen=True)
class RivalVariant(BranchedVariant):
    """A way to train by a rival.

    Attributes:
        make: As of its row.
    """

    make: str = ""

    def settings(self) -> Mapping[str, object]:
        """What result.json says about it, beside the network."""
        return {**super().settings(), "rival": self.make}


def variant_of(row: Rival) -> BranchedVariant:
    """The variant of a row, at the learning rate of the run."""
    if row.name == "dense":
        return dense()
    if not row.make:
        return narrow(HALF)
    return RivalVariant(row.name, row.title, row.note, make=row.make)


def rival_variants(config: RivalsRun) -> tuple[BranchedVariant, ...]:
    """Every rival, dense first; one whose package is missing is left out.

    Raises:
        MissingPackageError: It was asked for by name.
    """
    rows = installed()
    for row in RIVALS:
        if row not in rows and row.name in (*config.variants, *config.own):
            raise missing_package(f"the rival {row.name}", row.package, extra=row.package)
    return tuple(map(variant_of, rows))


def rival_search(rates: tuple[float, ...], aim: Aim) -> Search:
    """The same learning rates for each rival that is installed.

    Args:
        rates: Peak learning rates, as multiples of the recipe's own.
        aim: What decides.
    """
    rivals = [row.name for row in installed()]
    return listed_rates(rates, rivals, aim=aim, seeds=(100, 101))
