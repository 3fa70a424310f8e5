"""OIALR: train only a small core inside a network's settled orthogonal basis."""

from orthotrain.lowrank.method import AdaptiveLowRank
from orthotrain.lowrank.storage import load, save
from orthotrain.lowrank.surgery import compress, restore_structure, to_dense, to_factored

__all__ = [
    "AdaptiveLowRank",
    "compress",
    "load",
    "restore_structure",
    "save",
    "to_dense",
    "to_factored",
]
