"""What is named in a file and imported when it is used: ``"module:NAME"``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from orthotrain.errors import ConfigError


def named(reference: str) -> Any:
    """The object called ``"module:NAME"``; imports the module, also from the current folder.

    Raises:
        ConfigError: The text has another form, or there is no such module or name.
    """
    # ``python -m`` looks into the current folder, an installed command does not.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{reference!r} cannot be loaded ({error}); need module:NAME of a module that Python "
            "finds from the current folder"
        ) from error
