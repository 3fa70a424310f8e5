"""What importing the library costs beside ``import torch``: processor time of fresh processes.

Claim: ``from orthotrain import attach, AdaptiveLowRank`` takes at most 1.1 of ``import torch``.

Both run in fresh processes, one after the other in each round, and user and system time of each
are taken. Once with compiled files at hand, as an installed package has them, and once from source,
as in a folder that Python may not write to.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from _measure import ratio, report, verdict

TARGET = 1.1
TORCH = "import torch"
OURS = "from orthotrain import attach, AdaptiveLowRank"
OTHERS = (
    "from orthotrain import NearestOrthogonalGradient, attach",
    "from orthotrain.linalg import polar_factor",
    "from orthotrain.layers import DecorrelatedBatchNorm2d",
    "from orthotrain import compress, load",
)


def seconds_of(statement: str, environment: Mapping[str, str]) -> float:
    """User and system time of a fresh process that runs one statement."""
    process = subprocess.Popen([sys.executable, "-c", statement], env=dict(environment))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{statement!r} failed with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def measured(rounds: int, environment: Mapping[str, str]) -> dict[str, list[float]]:
    statements = (TORCH, OURS, *OTHERS)
    seconds: dict[str, list[float]] = {statement: [] for statement in statements}
    for turn in range(rounds + 1):
        for statement in statements if turn % 2 else reversed(statements):
            elapsed = seconds_of(statement, environment)
            if turn:  # the first round writes compiled files
                seconds[statement].append(elapsed)
    return seconds


def own_modules(statement: str) -> int:
    """How many modules of the library a statement loads."""
    count = "sum(name.split('.')[0] == 'orthotrain' for name in sys.modules)"
    code = f"{statement}\nimport sys\nprint({count})"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compiled = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        compiled.pop("PYTHONDONTWRITEBYTECODE", None)
        # Torch's own files stay where they are; ours, compiled or not, are not read.
        source = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        for title, environment in (
            ("Import with compiled files", compiled),
            ("Import of our own files from source", source),
        ):
            seconds = measured(arguments.rounds, environment)
            rows = [
                (
                    statement,
                    f"{sorted(taken)[len(taken) // 2]:.2f}",
                    ratio(seconds, statement, TORCH),
                )
                for statement, taken in seconds.items()
            ]
            modules = [own_modules(statement) for statement in seconds]
            rows = [(*row, count) for row, count in zip(rows, modules, strict=True)]
            report(title, ("statement", "s", "over import torch", "own modules"), rows)
            found = ratio(seconds, OURS, TORCH)
            print(f"{OURS}: {found}: {verdict(found.median, TARGET)}")


if __name__ == "__main__":
    main()
