"""Files of ``torch.save``: read as data alone; what would run code is refused by its name."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import torch

from orthotrain.errors import CheckpointError


class _Held:
    """Stands for an object that only holds values: settings of a program, a path."""

    def __new__(cls, *_: object) -> _Held:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        """What it held is of no use here."""


# Frameworks keep settings beside the weights. None of these classes is imported or called.
_STANDS_FOR: Final = {
    "argparse.Namespace": _Held,
    "pathlib.Path": _Held,
    "pathlib.PosixPath": _Held,
    "pathlib.PurePosixPath": _Held,
    "pathlib.PureWindowsPath": _Held,
    "pathlib.WindowsPath": _Held,
    "pathlib._local.PosixPath": _Held,
    "pathlib._local.WindowsPath": _Held,
    "lightning.fabric.utilities.data.AttributeDict": dict,
    "lightning_fabric.utilities.data.AttributeDict": dict,
    "pytorch_lightning.utilities.parsing.AttributeDict": dict,
    # A metric beside the weights may be a number of numpy.
    "numpy.dtype": _Held,
    "numpy.ndarray": _Held,
    "numpy._core.multiarray.scalar": _Held,
    "numpy._core.multiarray._reconstruct": _Held,
    "numpy.core.multiarray.scalar": _Held,
    "numpy.core.multiarray._reconstruct": _Held,
}
_REFUSED: Final = re.compile(r"(?:GLOBAL|class|global:?) `?([\w.]+\.[\w.]+)`? was not an allowed")
# Of torch's own files: the pickle of the magic number, of the version and of the system come first.
_PICKLES: Final = 4
# What any state dict names: torch's own functions for tensors, and the mapping around them.
_PLAIN: Final = re.compile(
    r"_codecs\.encode|collections\.OrderedDict|torch(\._utils|\.\w*Storage|\.storage)\b.*"
)


def load_pickled(path: Path) -> Any:
    """The content of a file of ``torch.save``, zip or legacy, on the CPU; no code of it is run.

    Raises:
        CheckpointError: It needs code to be loaded, it is a TorchScript program, or it is damaged
            or of another format.
    """
    zipped = zipfile.is_zipfile(path)
    if zipped and (reason := _no_state_dict(path)):
        raise CheckpointError(f"{path} {reason}")
    allowed: list[Any] = [(stand_in, name) for name, stand_in in _STANDS_FOR.items()]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about storages of earlier versions
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise _refusal(path, error, zipped=zipped) from error


def _no_state_dict(path: Path) -> str:
    """Why a zip archive is none of ``torch.save``; empty where it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        return f"is damaged ({error}); take another copy"
    if "constants.pkl" in names:
        return (
            "is a TorchScript program, which is code, and is not loaded; where you trust it, save "
            "its weights: torch.save(torch.jit.load(PATH).state_dict(), OTHER)"
        )
    if "data.pkl" not in names:
        return (
            "is a zip archive without weights of torch; give the file that torch.save or "
            "safetensors wrote"
        )
    return ""


def _refusal(path: Path, error: Exception, *, zipped: bool) -> CheckpointError:
    """The error for a file that could not be read."""
    text = str(error)
    named = _REFUSED.findall(text) if isinstance(error, pickle.UnpicklingError) else []
    suspects = [name for name in _globals_of(path, zipped=zipped) if not _PLAIN.fullmatch(name)]
    suspects = [name for name in dict.fromkeys([*named, *suspects]) if name not in _STANDS_FOR]
    if named or (suspects and isinstance(error, pickle.UnpicklingError)):
        return CheckpointError(
            f"{path} is a pickle that would run code of {', '.join(suspects[:5])}, and is not "
            "loaded; where you trust it, load it in the program that wrote it and save the "
            "weights alone: torch.save(model.state_dict(), PATH)"
        )
    # Torch's first line advises to load without weights_only; its reason stands behind this word.
    text = text.rpartition("WeightsUnpickler error: ")[2].strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    reason = reason if zipped else _no_pickle(path) or reason
    return CheckpointError(
        f"{path} is damaged or no model ({reason}); take another copy, or give a file that "
        "torch.save or safetensors wrote"
    )


def _no_pickle(path: Path) -> str:
    """Why a file that is no zip archive is no pickle either; empty where it may be one."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        return "a zip archive that is cut short"
    # Pickles since protocol 2, as torch writes them, begin with this byte.
    return "" if start.startswith(b"\x80") else f"no such file begins with {start!r}"


def _globals_of(path: Path, *, zipped: bool) -> list[str]:
    """Dotted names that the pickles of a file refer to, read without loading any of them."""
    found: list[str] = []
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
                found += _globals(io.BytesIO(archive.read(name)))
        else:
            with path.open("rb") as file:
                for _ in range(_PICKLES):
                    found += _globals(file)
    except Exception:  # bytes that are no pickle: what was found until there is told
        return found
    return found


def _globals(file: IO[bytes]) -> Iterator[str]:
    """The names of one pickle; names on the stack are followed through the memo."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif code.name == "STACK_GLOBAL" and len(strings) > 1:
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)
        elif code.name == "MEMOIZE" and strings:
            memo[len(memo)] = strings[-1]
        elif code.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            strings.append(memo.get(argument, ""))
