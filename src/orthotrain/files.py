"""Files that are replaced as a whole: after a crash they hold the old content or the new."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace ``path`` by ``content`` at once.

    The content is written in full beside its place and then moved there, so a full disk or a
    killed process leaves an earlier file as it was, and a reader never sees half of one. Several
    processes may write the same path: the last one wins, whole.

    Args:
        path: File to write. Its folder must exist.
        content: All of it.

    Raises:
        OSError: The disk is full, the folder cannot be written, or ``path`` is there and is no
            file; it is as before.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # Moving a file there would take the place of a device or a pipe, as root even /dev/null.
        raise OSError(errno.EEXIST, "exists and is no regular file", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
