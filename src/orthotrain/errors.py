"""Typed errors: what was given, what was needed, what to try.

Every error is also a ``ValueError``, ``ArithmeticError``, ``OSError`` or ``ImportError``, so code
that knows nothing of this package still catches it by its kind.
"""

from __future__ import annotations


class OrthotrainError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(OrthotrainError, ValueError):
    """A setting, pattern or combination of settings that cannot work."""


class ShapeError(OrthotrainError, ValueError):
    """A tensor whose shape the function cannot take."""


class RankError(OrthotrainError, ValueError):
    """A rank outside ``[1, min(m, n)]``."""


class StateError(OrthotrainError, ValueError):
    """Optimizer or method state that does not fit the model it is loaded into."""


class CheckpointError(OrthotrainError, ValueError):
    """A checkpoint that is corrupt, of another structure, or could not be written."""


class DataError(OrthotrainError, FileNotFoundError):
    """A data file that is missing or not what its name promises."""


class MissingPackageError(OrthotrainError, ImportError):
    """A package that this call needs and that is not installed."""


class WorkerError(OrthotrainError, RuntimeError):
    """A worker process that ended before its work did."""


class NonFiniteError(OrthotrainError, ArithmeticError):
    """NaN or infinity where finite numbers are needed."""


class NotPositiveDefiniteError(OrthotrainError, ArithmeticError):
    """A matrix with an eigenvalue that the operation cannot take."""


class ConvergenceError(OrthotrainError, ArithmeticError):
    """An iteration or decomposition that did not converge."""


class OrthotrainWarning(UserWarning):
    """Something was left as it was or reset; the message names it."""


class NumericalWarning(OrthotrainWarning, RuntimeWarning):
    """A fallback that may change the answer; the message carries the number."""
