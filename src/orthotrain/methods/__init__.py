"""What acts around ``optimizer.step()``: the protocol of methods, and how they find weights.

The verb itself is :func:`orthotrain.attach`, in :mod:`orthotrain.methods.attach`.
"""

from orthotrain.methods.handle import Handle
from orthotrain.methods.nearest_orthogonal import NearestOrthogonalGradient
from orthotrain.methods.optimal_learning_rate import OptimalLearningRate
from orthotrain.methods.optimal_step import optimal_lr, optimal_lr_matrix
from orthotrain.methods.protocol import Bound, Method, Phase, Record, Run
from orthotrain.methods.select import Pattern, select_modules, select_parameters, unwrap
from orthotrain.methods.summary import Row, Summary, Total
from orthotrain.methods.weight_penalty import OrthogonalPenalty, Retraction, SpectralNormalization

__all__ = [
    "Bound",
    "Handle",
    "Method",
    "NearestOrthogonalGradient",
    "OptimalLearningRate",
    "OrthogonalPenalty",
    "Pattern",
    "Phase",
    "Record",
    "Retraction",
    "Row",
    "Run",
    "SpectralNormalization",
    "Summary",
    "Total",
    "optimal_lr",
    "optimal_lr_matrix",
    "select_modules",
    "select_parameters",
    "unwrap",
]
