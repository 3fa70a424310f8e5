"""Files that are replaced as a whole: after a crash they hold the old content or the new."""

from __future__ import annotations

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
        OSError: The disk is full or the folder cannot be written; ``path`` is as before.
    """
    path = Path(path)
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
