"""What acts around ``optimizer.step()``: the verb ``attach``, methods, and how to write one.

A method of your own derives from :class:`GradientMethod`, :class:`WeightMethod` or, for anything
else, :class:`Method`.
"""

from typing import TYPE_CHECKING

from orthotrain._names import lazy_names

if TYPE_CHECKING:
    from orthotrain.methods._attach import attach
    from orthotrain.methods.bases import GradientMethod, WeightMethod
    from orthotrain.methods.copies import frozen_copy
    from orthotrain.methods.handle import Handle
    from orthotrain.methods.nearest_orthogonal import NearestOrthogonalGradient
    from orthotrain.methods.optimal_learning_rate import OptimalLearningRate
    from orthotrain.methods.optimal_lr_formulas import optimal_lr, optimal_lr_matrix
    from orthotrain.methods.orthogonal_penalty import OrthogonalPenalty
    from orthotrain.methods.protocol import Bound, Method, Phase, Record, Run
    from orthotrain.methods.retraction import Retraction
    from orthotrain.methods.select import Pattern, select_modules, select_parameters, unwrap
    from orthotrain.methods.spectral_normalization import SpectralNormalization
    from orthotrain.methods.summary import Row, Summary, Total
    from orthotrain.methods.targets import Target, find_targets

__all__ = [
    "Bound",
    "GradientMethod",
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
    "Target",
    "Total",
    "WeightMethod",
    "attach",
    "find_targets",
    "frozen_copy",
    "optimal_lr",
    "optimal_lr_matrix",
    "select_modules",
    "select_parameters",
    "unwrap",
]
_HOME = {
    "Bound": "protocol",
    "GradientMethod": "bases",
    "Handle": "handle",
    "Method": "protocol",
    "NearestOrthogonalGradient": "nearest_orthogonal",
    "OptimalLearningRate": "optimal_learning_rate",
    "OrthogonalPenalty": "orthogonal_penalty",
    "Pattern": "select",
    "Phase": "protocol",
    "Record": "protocol",
    "Retraction": "retraction",
    "Row": "summary",
    "Run": "protocol",
    "SpectralNormalization": "spectral_normalization",
    "Summary": "summary",
    "Target": "targets",
    "Total": "summary",
    "WeightMethod": "bases",
    "attach": "_attach",
    "find_targets": "targets",
    "frozen_copy": "copies",
    "optimal_lr": "optimal_lr_formulas",
    "optimal_lr_matrix": "optimal_lr_formulas",
    "select_modules": "select",
    "select_parameters": "select",
    "unwrap": "select",
}

if not TYPE_CHECKING:  # type checkers know which names there are
    __getattr__ = lazy_names(__name__, _HOME)
