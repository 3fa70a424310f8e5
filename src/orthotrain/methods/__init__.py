"""What acts around ``optimizer.step()``: the protocol of methods and ``attach``."""

from orthotrain.methods.protocol import Bound, Method, Phase, Run
from orthotrain.methods.summary import Row

__all__ = ["Bound", "Method", "Phase", "Row", "Run"]
