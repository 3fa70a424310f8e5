"""OIALR: train only a small core inside a network's settled orthogonal basis."""

from typing import TYPE_CHECKING

from orthotrain._names import missing_name
from orthotrain.lowrank.branch import Branch, Sizes
from orthotrain.lowrank.compression import compress
from orthotrain.lowrank.compression_report import CompressedLayer, Compression
from orthotrain.lowrank.dense_view import dense_parameters
from orthotrain.lowrank.following import follow, restore_structure
from orthotrain.lowrank.method import AdaptiveLowRank
from orthotrain.lowrank.rank_rule import Candidate, LayerRule, RankRule
from orthotrain.lowrank.rate import rate_after_cut
from orthotrain.lowrank.rules import (
    RANK_RULES,
    Energy,
    Relative,
    StoredBudget,
    read_rule,
)
from orthotrain.lowrank.several_sizes import sizes
from orthotrain.lowrank.storage import load, save
from orthotrain.lowrank.surgery import to_dense, to_factored
from orthotrain.lowrank.teacher import teacher_loss

__all__ = [
    "RANK_RULES",
    "AdaptiveLowRank",
    "Branch",
    "Candidate",
    "CompressedLayer",
    "Compression",
    "Energy",
    "LayerRule",
    "RankRule",
    "Relative",
    "Sizes",
    "StoredBudget",
    "compress",
    "dense_parameters",
    "follow",
    "load",
    "rate_after_cut",
    "read_rule",
    "restore_structure",
    "save",
    "sizes",
    "teacher_loss",
    "to_dense",
    "to_factored",
]

if not TYPE_CHECKING:  # type checkers know that the name is missing
    __getattr__ = missing_name(__name__)
