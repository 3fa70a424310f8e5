"""Orthogonality as a training tool for PyTorch.

Importing this package imports nothing else: every public name is loaded on first use, so
``orthotrain --help`` and the report need no torch. The names are::

    attach                                    hook methods onto an optimizer's step
    AdaptiveLowRank                           train in an orthogonal basis, shrink the core (OIALR)
    Relative, Energy, StoredBudget            how the rank of each layer is chosen
    compress, to_dense, to_factored           change the form of a trained model
    sizes, rate_after_cut                     several sizes from one model, each trained on
    frozen_copy, teacher_loss                 the model itself as the teacher of a smaller one
    restore_structure, save, load             checkpoints that know their ranks
    follow                                    a model takes the structure of what it loads
    dense_parameters                          names and weights as of the dense model
    BasisStability                            watch the bases settle
    ConditionMonitor                          watch rank and condition, in four senses
    NearestOrthogonalGradient                 orthogonal gradients or updates (NOG)
    OptimalLearningRate                       a step length for each weight (OLR)
    OrthogonalPenalty, SpectralNormalization, Retraction       other treatments of a weight
    disentangle                               score a generator: evaluate(generate, latent_dim=...)
    linalg, layers, methods, lowrank, diagnostics, models, data

The laboratory (runs, experiments, reports) is :mod:`orthotrain.lab`; it needs the extra ``lab``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from orthotrain._names import raise_missing
from orthotrain._version import __version__

if TYPE_CHECKING:
    from orthotrain import (
        data,
        diagnostics,
        disentangle,
        layers,
        linalg,
        lowrank,
        methods,
        models,
    )
    from orthotrain.diagnostics import BasisStability, ConditionMonitor
    from orthotrain.lowrank import (
        AdaptiveLowRank,
        Energy,
        Relative,
        StoredBudget,
        compress,
        dense_parameters,
        follow,
        load,
        rate_after_cut,
        restore_structure,
        save,
        sizes,
        teacher_loss,
        to_dense,
        to_factored,
    )
    from orthotrain.methods import (
        NearestOrthogonalGradient,
        OptimalLearningRate,
        OrthogonalPenalty,
        Retraction,
        SpectralNormalization,
        attach,
        frozen_copy,
    )


__all__ = [
    "AdaptiveLowRank",
    "BasisStability",
    "ConditionMonitor",
    "Energy",
    "NearestOrthogonalGradient",
    "OptimalLearningRate",
    "OrthogonalPenalty",
    "Relative",
    "Retraction",
    "SpectralNormalization",
    "StoredBudget",
    "__version__",
    "attach",
    "compress",
    "data",
    "dense_parameters",
    "diagnostics",
    "disentangle",
    "follow",
    "frozen_copy",
    "layers",
    "linalg",
    "load",
    "lowrank",
    "methods",
    "models",
    "rate_after_cut",
    "restore_structure",
    "save",
    "sizes",
    "teacher_loss",
    "to_dense",
    "to_factored",
]

# Public name -> the module that defines it. The block under TYPE_CHECKING says the same to
# type checkers and editors; tests/test_structure.py holds the two together.
_HOME = {
    "AdaptiveLowRank": "orthotrain.lowrank",
    "BasisStability": "orthotrain.diagnostics",
    "ConditionMonitor": "orthotrain.diagnostics",
    "Energy": "orthotrain.lowrank",
    "NearestOrthogonalGradient": "orthotrain.methods",
    "OptimalLearningRate": "orthotrain.methods",
    "OrthogonalPenalty": "orthotrain.methods",
    "Relative": "orthotrain.lowrank",
    "Retraction": "orthotrain.methods",
    "SpectralNormalization": "orthotrain.methods",
    "StoredBudget": "orthotrain.lowrank",
    "attach": "orthotrain.methods",
    "compress": "orthotrain.lowrank",
    "dense_parameters": "orthotrain.lowrank",
    "follow": "orthotrain.lowrank",
    "frozen_copy": "orthotrain.methods",
    "load": "orthotrain.lowrank",
    "rate_after_cut": "orthotrain.lowrank",
    "restore_structure": "orthotrain.lowrank",
    "save": "orthotrain.lowrank",
    "sizes": "orthotrain.lowrank",
    "teacher_loss": "orthotrain.lowrank",
    "to_dense": "orthotrain.lowrank",
    "to_factored": "orthotrain.lowrank",
}
_SUBMODULES = frozenset(
    {
        "data",
        "diagnostics",
        "disentangle",
        "layers",
        "linalg",
        "lowrank",
        "methods",
        "models",
    }
)


def __getattr__(name: str) -> object:
    """Load a public name on first use and keep it (PEP 562)."""
    if name in _SUBMODULES:
        # The import system binds a submodule to its package, so this runs once per name.
        return importlib.import_module(f"orthotrain.{name}")
    if name in _HOME:
        value: object = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise_missing(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
