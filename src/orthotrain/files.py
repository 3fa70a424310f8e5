"""Files that are replaced as a whole: after a crash they hold the old content or the new."""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

_REMEDIES: Final = {
    errno.ENOENT: "make the folder it lies in, or correct the path",
    errno.ENOTDIR: "a file stands where the path needs a folder; move it away or correct the path",
    errno.EACCES: "get the permission for it, or choose another place",
    errno.EPERM: "get the permission for it, or choose another place",
    errno.EROFS: "the file system can only be read; choose another one",
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "your share of the disk is used up; free some space, or choose another disk",
    errno.EFBIG: "files here may not grow so large; raise the limit (ulimit -f), or choose another "
    "disk",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EINVAL: "the file system does not take this name; choose another one",
    errno.EILSEQ: "the file system does not take this name; choose another one",
    errno.EISDIR: "a folder has this name; move it away, or choose another name",
    errno.EEXIST: "something else has this name; move it away, or choose another name",
    errno.ELOOP: "its links lead in a circle; correct them, or choose another place",
    errno.EMFILE: "close some files, or raise the limit (ulimit -n)",
    errno.ENFILE: "close some files, or raise the limit (ulimit -n)",
    errno.EIO: "the disk reports a fault; choose another one",
}
_TEMPORARY: Final = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")
# Characters of a file's name in that of its temporary one, which has to fit, too.
_NAMED: Final = 60
# Nobody writes that long at one file without a change to it.
_ABANDONED_SECONDS: Final = 24 * 3600

#: What ``numpy.load`` and reading its arrays raise for a damaged file or one of another format.
UNREADABLE_ARRAYS: Final = (
    OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def remedy(error: OSError) -> str:
    """What to try, by the cause that the system gives and no other one."""
    return _REMEDIES.get(error.errno or 0, "mend that, or choose another place")


def write_atomically(
    path: str | os.PathLike[str], content: bytes, *, keep: str | os.PathLike[str] | None = None
) -> None:
    """Replace ``path`` by ``content`` at once.

    The content is written in full beside its place and then moved there, so a full disk or a
    killed process leaves an earlier file as it was, and a reader never sees half of one. Several
    processes may write the same path: the last one wins, whole. What killed ones left beside it a
    day ago or earlier is removed.

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
    if "\0" in path.name:  # which Python refuses without saying that it is the path
        raise OSError(errno.EINVAL, "null character in the name", str(path))
    _require_no_other(path)
    remove_abandoned(path.parent, name=path.name, seconds=_ABANDONED_SECONDS, below=False)
    moved = False
    temporary = path.with_name(f".{path.name[:_NAMED]}.{secrets.token_hex(4)}.tmp")
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
    _sync_folder(path.parent)


def _require_no_other(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        # Moving a file there would take the place of a device or a pipe, as root even /dev/null.
        raise FileExistsError(errno.EEXIST, "exists and is no regular file", str(path))


def remove_abandoned(
    folder: Path, *, name: str | None = None, seconds: float = 0.0, below: bool = True
) -> list[Path]:
    """Remove the temporary files of killed calls of :func:`write_atomically`.

    Args:
        folder: Where they lie.
        name: Of the file that was to be written; None for all.
        seconds: Those that changed within this time are left: somebody may still write them.
        below: Whether to look into the folders within it.

    Returns:
        What was removed.
    """
    removed = []
    for path in folder.rglob(".*.tmp") if below else folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or (name is not None and found["name"] != name[:_NAMED]):
            continue
        # Another process may remove it, too, or be the one that writes it.
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                path.unlink()
                removed.append(path)
    return removed


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk. Where a system cannot, the file is whole all the same."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
