"""Where a run's chance comes from, and on what it ran."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from orthotrain._version import __version__
from orthotrain.errors import ConfigError
from orthotrain.lab.run.config import Device

_STREAMS: Final = ("weights", "batches", "rival", "branch", "dropout", "walk")


def stream_seed(seed: int, stream: str) -> int:
    """Seed of one stream of chance of a run: equal for all variants, different across streams.

    Args:
        seed: Seed of the run.
        stream: ``"weights"``, ``"batches"``, ``"rival"``, what a term of the loss draws,
            ``"branch"``, the batches of a training that goes on from a finished one,
            ``"dropout"``, or ``"walk"``, the directions of a random walk.
    """
    sequence = np.random.SeedSequence([seed, _STREAMS.index(stream)])
    return int(sequence.generate_state(1, dtype=np.uint32)[0])


def resolve_device(device: Device) -> torch.device:
    """The torch device; ``"auto"`` is a GPU where there is one.

    Raises:
        ConfigError: CUDA is asked for and is not there.
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigError(
            "device=cuda needs a GPU and a torch that is built for it; this torch "
            f"({torch.__version__}) sees none; take device=cpu or device=auto"
        )
    return torch.device("cuda" if device == "cuda" or (device == "auto" and there) else "cpu")


def environment(
    *, command: str, device: torch.device, threads: int, processes: int = 1
) -> dict[str, Any]:
    """Versions, machine, command and commit, as plain values for run.json."""
    commit, dirty = git_state(Path(__file__).parent)
    return {
        "created": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "command": command,
        "orthotrain": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": threads,
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "git_commit": commit,
        "git_dirty": dirty,
    }


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout that holds ``folder`` and whether it has changes; None without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    status = _git(folder, "status", "--porcelain")
    return commit, None if status is None else bool(status)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def reset_peak_memory() -> bool:
    """Start measuring this process's peak memory anew; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        # See proc(5): writing 5 to clear_refs resets VmHWM.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int | None:
    """Peak resident memory since the last reset; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return None if match is None else int(match[1]) * 1024
