"""What is measured while a network trains, as methods for ``attach``."""

from typing import TYPE_CHECKING

from orthotrain._names import missing_name
from orthotrain.diagnostics.conditioning import ConditionMonitor
from orthotrain.diagnostics.stability import BasisStability
from orthotrain.diagnostics.writers import JsonlWriter, TensorBoardWriter

__all__ = ["BasisStability", "ConditionMonitor", "JsonlWriter", "TensorBoardWriter"]

if not TYPE_CHECKING:  # type checkers know that the name is missing
    __getattr__ = missing_name(__name__)
