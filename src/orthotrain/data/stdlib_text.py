"""The sources of Python's own standard library as bytes: real text that needs no download."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import UInt8
from torch import Tensor

from orthotrain.data.splits import Part
from orthotrain.errors import DataError

# Not written as source text: tests, other people's packages, tables that programs wrote.
_LEFT_OUT_FOLDERS: Final = frozenset({
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("encodings", "pydoc_data", "lib-dynload"),
})  # fmt: skip
# Tables that programs wrote, and what belongs to one machine.
_LEFT_OUT_FILES: Final = frozenset({
    "html/entities.py", "stringprep.py", "_compat_pickle.py", "sitecustomize.py",
    "usercustomize.py", "_opcode_metadata.py",
})  # fmt: skip
_LEFT_OUT_BEGINNINGS: Final = ("_sysconfigdata", "config-")

# A file goes where the hash of its name says: a tenth to validate, a tenth to test.
_HELD_OUT: Final[tuple[Part, ...]] = ("validation", "test")
_TENTHS: Final = 10
# No source holds this byte.
_END_OF_FILE: Final = b"\0"
#: Bytes that each part needs; the standard library has a hundred times more.
LEAST_BYTES: Final = 4096


@dataclass(frozen=True)
class PartSize:
    """How much of the text lies in one part."""

    files: int
    bytes: int


@dataclass(frozen=True)
class TextData:
    """A text in three parts, as bytes; behind each file of it a zero.

    The test part stays behind a function: a run reads it once, after its last step.

    Attributes:
        train: ``(n,)`` uint8.
        validation: ``(n,)`` uint8.
        read_test: Gives the test part, ``(n,)`` uint8.
        sha256: Of names and contents of all files, in hexadecimal digits.
        sizes: Files and bytes of each part.
    """

    train: UInt8[Tensor, " n"]
    validation: UInt8[Tensor, " n"]
    read_test: Callable[[], UInt8[Tensor, " n"]]
    sha256: str
    sizes: Mapping[Part, PartSize]


def load_stdlib(folder: str | os.PathLike[str] | None = None) -> TextData:
    """The sources of the standard library, split by file.

    A file's part depends on its own name alone. So an added file moves no other one.

    Args:
        folder: The library; that of the running Python when None.

    Returns:
        Its text, on the CPU; about ten million bytes.

    Raises:
        DataError: The library is no folder (a zip file), holds no sources (only compiled files),
            or is too small to be split.
    """
    root = Path(sysconfig.get_paths()["stdlib"] if folder is None else folder)
    if not root.is_dir():
        raise DataError(
            f"load_stdlib: {root} is no folder, so this Python keeps its standard library in a zip "
            "file or nowhere; use a Python with its sources (python.org, conda, pyenv or a "
            "distribution's full package), or give the folder of one"
        )
    names = sorted(_sources(root))
    if not names:
        compiled = next(root.rglob("*.pyc"), None)
        found = "compiled files only" if compiled else "no Python files"
        raise DataError(
            f"load_stdlib: {root} holds {found}; need the sources (*.py) of the standard library; "
            "use a Python that has them, or give the folder of one"
        )
    contents: dict[Part, list[bytes]] = {"train": [], "validation": [], "test": []}
    digest = hashlib.sha256()
    for name in names:
        try:
            content = (root / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"load_stdlib cannot read {root / name} ({error}); use a Python whose library can "
                "be read, or give the folder of one"
            ) from error
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
        contents[part_of(name)].append(content)
    sizes = {part: PartSize(len(all_), sum(map(len, all_))) for part, all_ in contents.items()}
    smallest = min(sizes, key=lambda part: sizes[part].bytes)
    if sizes[smallest].bytes < LEAST_BYTES:
        raise DataError(
            f"load_stdlib: {root} has {len(names)} sources, of which {sizes[smallest].files} with "
            f"{sizes[smallest].bytes} bytes fall to the {smallest} part; need {LEAST_BYTES} bytes "
            "in each; use a Python with its whole standard library"
        )
    return TextData(
        train=_tensor(contents["train"]),
        validation=_tensor(contents["validation"]),
        read_test=lambda: _tensor(contents["test"]),
        sha256=digest.hexdigest(),
        sizes=sizes,
    )


def part_of(name: str) -> Part:
    """The part of a file, from its path below the library, with slashes."""
    first = hashlib.sha256(name.encode()).digest()[:4]
    tenth = int.from_bytes(first, "big") % _TENTHS
    return _HELD_OUT[tenth] if tenth < len(_HELD_OUT) else "train"


def _sources(root: Path) -> Iterator[str]:
    for folder, inner, files in os.walk(root):
        inner[:] = [
            one for one in inner
            if one not in _LEFT_OUT_FOLDERS and not one.startswith(_LEFT_OUT_BEGINNINGS)
        ]  # fmt: skip
        for file in files:
            name = (Path(folder) / file).relative_to(root).as_posix()
            kept = name not in _LEFT_OUT_FILES and not file.startswith(_LEFT_OUT_BEGINNINGS)
            if file.endswith(".py") and kept:
                yield name


def _tensor(contents: list[bytes]) -> UInt8[Tensor, " n"]:
    joined = bytearray(_END_OF_FILE.join([*contents, b""]))
    return torch.frombuffer(joined, dtype=torch.uint8)
