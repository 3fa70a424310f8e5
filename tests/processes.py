"""Starts the processes of a distributed test, and makes one start serve every test of a file."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TIMEOUT_SECONDS = 90
TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src"


def outcomes_of(script, world, *, name, tmp_path_factory, seconds=TIMEOUT_SECONDS):
    """What each process of ``script`` saved as ``rank<i>.pt``, in the order of ranks.

    Started once, also where the tests of a file are spread over several pytest processes; ``name``
    is that of the folder they share.
    """
    spread = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if spread else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "failed").exists() and not (folder / "rank1.pt").exists():
            run_processes(script, world, folder, seconds=seconds)
    if (folder / "failed").exists():
        pytest.fail((folder / "failed").read_text())
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def run_processes(script, world, folder, *, seconds=TIMEOUT_SECONDS):
    """Start the processes and wait; none outlives this, whatever happens.

    Where one fails, ``folder/failed`` says how.
    """
    paths = os.pathsep.join([str(SOURCE), str(TESTS)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    logs = [folder / f"log{rank}.txt" for rank in range(world)]
    workers = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as stream:
                workers.append(
                    subprocess.Popen(
                        [sys.executable, str(script), str(rank), str(folder)],
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        env=environment,
                    )
                )
        deadline = time.monotonic() + seconds
        codes = [worker.wait(max(0.1, deadline - time.monotonic())) for worker in workers]
    except subprocess.TimeoutExpired:
        codes = ["timeout"]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    if any(codes):
        tails = "\n".join(log.read_text()[-3000:] for log in logs)
        (folder / "failed").write_text(f"exit codes {codes}\n{tails}")


def run_python(code):
    """Standard output of ``code`` in a fresh interpreter that sees this checkout."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
