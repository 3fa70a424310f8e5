"""Files that are replaced as a whole: after a crash they hold the old content or the new."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path


def write_atomically(
    path: str | os.PathLike[str], content: bytes, *, keep: str | os.PathLike[str] | None = None
) -> None:
    """Replace ``path`` by ``content`` at once.

    The content is written in full beside its place and then moved there, so a full disk or a
    killed process leaves an earlier file as it was, and a reader never sees half of one. Several
    processes may write the same path: the last one wins, whole.

    Args:
        path: File to write. Its folder must exist.
        content: All of it.
        keep: Where an earlier file at ``path`` goes, in the same folder; None for nowhere. A
            process killed at that moment leaves it there, and nothing at ``path``.

    Raises:
        OSError: The disk is full, the folder cannot be written, or ``path`` is there and is no
            file; it is as before.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # Moving a file there would take the place of a device or a pipe, as root even /dev/null.
        raise OSError(errno.EEXIST, "exists and is no regular file", str(path))
    moved = False
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
            moved = True
        os.replace(temporary, path)
    except BaseException:
        if keep is not None and moved:
            os.replace(keep, path)
        temporary.unlink(missing_ok=True)
        raise
