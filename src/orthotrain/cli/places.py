"""Where a command writes: checked before the work whose result goes there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from orthotrain.errors import ConfigError
from orthotrain.files import remedy


def require_place(path: Path, *, read: Path | None = None) -> None:
    """Raise ConfigError where a file cannot go to ``path``.

    Args:
        path: Where it is to go.
        read: The file it is made from, which must stay; links to it count as the file itself.
    """
    try:
        if read is not None and path.exists() and read.exists() and path.samefile(read):
            raise ConfigError(
                f"{path} is the file that is read; choose another name for what is written"
            )
        if path.is_dir():
            raise _error(errno.EISDIR, path)
        if not path.parent.is_dir():
            raise _error(errno.ENOTDIR if path.parent.exists() else errno.ENOENT, path.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}); {remedy(error)}") from error


def require_no_run(folder: Path) -> None:
    """Raise ConfigError where a report would lie among the files of a run."""
    if (folder / "run.json").exists():
        raise ConfigError(
            f"--output: {folder} is the folder of a run; choose another one, such as "
            f"{folder / 'report'}"
        )


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
