"""Adaptive low-rank training among its rivals: as published, and as it is without any setting."""

from __future__ import annotations

from torch import nn

from orthotrain.lab.experiments.branches.method import low_rank_method
from orthotrain.lab.experiments.branches.plan import Plan
from orthotrain.lab.experiments.branches.variants import PUBLISHED
from orthotrain.lab.experiments.rivals.config import RivalSettings
from orthotrain.lowrank import AdaptiveLowRank


def published(model: nn.Module, settings: RivalSettings, *, total_steps: int, seed: int) -> Plan:
    """OIALR as published: Coquelin et al. (2024), arXiv:2401.08505."""
    return Plan((low_rank_method(PUBLISHED, total_steps=total_steps),))


def default(model: nn.Module, settings: RivalSettings, *, total_steps: int, seed: int) -> Plan:
    """What one line does: half of the numbers from half of the run on."""
    return Plan((AdaptiveLowRank(),))
