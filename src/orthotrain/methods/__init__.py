"""What acts around ``optimizer.step()``: the protocol of methods, and how they find weights.

The verb itself is :func:`orthotrain.attach`, in :mod:`orthotrain.methods.attach`.
"""

from orthotrain.methods.handle import Handle
from orthotrain.methods.protocol import Bound, Method, Phase, Record, Run
from orthotrain.methods.select import Pattern, select_modules, select_parameters, unwrap
from orthotrain.methods.summary import Row, Summary, Total

__all__ = [
    "Bound",
    "Handle",
    "Method",
    "Pattern",
    "Phase",
    "Record",
    "Row",
    "Run",
    "Summary",
    "Total",
    "select_modules",
    "select_parameters",
    "unwrap",
]
