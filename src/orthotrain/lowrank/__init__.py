"""OIALR: train only a small core inside a network's settled orthogonal basis."""

from typing import TYPE_CHECKING

from orthotrain._names import lazy_names

if TYPE_CHECKING:
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
_HOME = {
    "AdaptiveLowRank": "method",
    "Branch": "branch",
    "Candidate": "rank_rule",
    "CompressedLayer": "compression_report",
    "Compression": "compression_report",
    "Energy": "rules",
    "LayerRule": "rank_rule",
    "RANK_RULES": "rules",
    "RankRule": "rank_rule",
    "Relative": "rules",
    "Sizes": "branch",
    "StoredBudget": "rules",
    "compress": "compression",
    "dense_parameters": "dense_view",
    "follow": "following",
    "load": "storage",
    "rate_after_cut": "rate",
    "read_rule": "rules",
    "restore_structure": "following",
    "save": "storage",
    "sizes": "several_sizes",
    "teacher_loss": "teacher",
    "to_dense": "surgery",
    "to_factored": "surgery",
}

if not TYPE_CHECKING:  # type checkers know which names there are
    __getattr__ = lazy_names(__name__, _HOME)
