"""OIALR: train only a small core inside a network's settled orthogonal basis."""

from typing import TYPE_CHECKING

from orthotrain._names import missing_name
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

if not TYPE_CHECKING:  # type checkers know that the name is missing
    __getattr__ = missing_name(__name__)
