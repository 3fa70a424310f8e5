"""The variants of the table of rivals.

This module does not import torch, so a command line can be parsed before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orthotrain.extras import missing_package
from orthotrain.lab.experiments.branches.variants import BranchedVariant, dense, narrow
from orthotrain.lab.experiments.rivals.config import RivalsRun
from orthotrain.lab.experiments.rivals.table import HALF, RIVALS, Rival, installed, rate_name


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


def variant_of(row: Rival, lr: float) -> BranchedVariant:
    """The variant of a row, at a peak learning rate."""
    if row.name == "dense":
        return dense(lr)
    if not row.make:
        return narrow(HALF, lr)
    return RivalVariant(row.name, row.title, row.note, lr=lr, make=row.make)


def rival_variants(config: RivalsRun) -> tuple[BranchedVariant, ...]:
    """Every rival at its rate, dense first; one whose package is missing is left out.

    Raises:
        MissingPackageError: It was asked for by name.
    """
    rows = installed()
    for row in RIVALS:
        if row not in rows and row.name in config.variants:
            raise missing_package(f"the rival {row.name}", row.package, extra=row.package)
    rates = config.rival_rates
    return tuple(variant_of(row, rates.get(rate_name(row.name), rates["dense"])) for row in rows)
