"""Packages that only some functions need: imported by the call that needs them, not before."""

from __future__ import annotations

import importlib
from typing import Any

from orthotrain.errors import MissingPackageError


def optional_module(function: str, module: str, *, package: str, extra: str = "lab") -> Any:
    """The module, imported now.

    Args:
        function: What the user called; the error names it.
        module: Name of the module, for instance ``"sklearn.svm"``.
        package: Name under which it is installed, for instance ``"scikit-learn"``.
        extra: The extra of this package that installs it.

    Raises:
        MissingPackageError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_package(function, package, extra=extra) from error


def missing_package(function: str, package: str, *, extra: str = "lab") -> MissingPackageError:
    """The error that says which line installs the package."""
    return MissingPackageError(
        f"{function}: {package} is needed and not installed; install it with: "
        f'pip install "orthotrain[{extra}]"'
    )
