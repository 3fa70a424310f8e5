"""What is measured while a network trains, as methods for ``attach``."""

from typing import TYPE_CHECKING

from orthotrain._names import lazy_names

if TYPE_CHECKING:
    from orthotrain.diagnostics.conditioning import ConditionMonitor
    from orthotrain.diagnostics.stability import BasisStability
    from orthotrain.diagnostics.writers import JsonlWriter, TensorBoardWriter

__all__ = ["BasisStability", "ConditionMonitor", "JsonlWriter", "TensorBoardWriter"]
_HOME = {
    "BasisStability": "stability",
    "ConditionMonitor": "conditioning",
    "JsonlWriter": "writers",
    "TensorBoardWriter": "writers",
}

if not TYPE_CHECKING:  # type checkers know which names there are
    __getattr__ = lazy_names(__name__, _HOME)
