"""What is measured while a network trains, as methods for ``attach``."""

from orthotrain.diagnostics.conditioning import ConditionMonitor
from orthotrain.diagnostics.stability import BasisStability

__all__ = ["BasisStability", "ConditionMonitor"]
