"""Time and memory of what is done to a whole model, against its size, and the line of growth.

A GPT in float32 on the CPU. Each operation runs in a fresh process:

- ``attach``: ``attach(model, optimizer, AdaptiveLowRank(...))``;
- ``switch``: the step in which all layers become low-rank, less an ordinary step of AdamW;
- ``update``: the next one, which looks at all cores and cuts;
- ``compress``: ``compress(model, stored_budget=0.5)`` without data; then ``to_dense`` of it;
- ``inspect``: ``orthotrain inspect`` of the saved weights.

The seconds are the processor's, all threads together. The peak is of resident memory, from the
start of the operation on, over the bytes of the weights: model, gradients and the state of AdamW
are in it where training has them. With three sizes and more, ``seconds = a * parameters ** b`` is
fitted, and the line is read at 7e9 parameters: one thread, no accelerator.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from _measure import report
from orthotrain import AdaptiveLowRank, attach, compress, to_dense
from orthotrain.models import GPT

# Width and depth; the blocks have 12 * width**2 * depth numbers.
SIZES = {"1M": (128, 5), "10M": (384, 6), "50M": (640, 10), "124M": (960, 11), "350M": (1344, 16)}
OPERATIONS = ("attach", "switch", "update", "compress", "to_dense", "inspect")
FAR = 7e9
_STATUS = Path("/proc/self/status")


def model_of(size: str) -> GPT:
    width, depth = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    return GPT(context=256, width=width, depth=depth, heads=width // 64, generator=generator)


def forget_peak() -> None:
    """Start the count of peak memory anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    (line,) = (x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measured(act: Callable[[], object]) -> tuple[float, int]:
    forget_peak()
    start = time.process_time()
    act()
    return time.process_time() - start, peak_bytes()


def training(model: GPT, upto: str) -> tuple[float, int]:
    """Attach, switch or update, each measured where it is asked for."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(1)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    step()
    ordinary, _ = measured(step)
    method = AdaptiveLowRank(
        delay_steps=1, every_steps=1, rank_rtol=0.1, importance="weight", only_if_cheaper=False,
        spread=False,
    )  # fmt: skip
    found = measured(lambda: attach(model, optimizer, method))
    for operation in ("switch", "update"):
        if upto == "attach":
            break
        seconds, peak = measured(step)
        found = max(seconds - ordinary, 0.0), peak
        if upto == operation:
            break
    return found


def one(size: str, operation: str, file: str) -> dict[str, float]:
    """One operation, in this process."""
    model = model_of(size)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if operation in ("attach", "switch", "update"):
        seconds, peak = training(model, operation)
    elif operation == "save":
        seconds, peak = measured(lambda: torch.save(model.state_dict(), file))
    else:
        found = measured(lambda: compress(model, stored_budget=0.5))
        seconds, peak = found if operation == "compress" else measured(lambda: to_dense(model))
    numbers = sum(p.numel() for p in model.parameters())
    return {"seconds": seconds, "peak": peak, "weights": weights, "numbers": numbers}


def inspected(file: str) -> tuple[float, int]:
    """``orthotrain inspect`` of a file: time and peak of the whole process."""
    command = [sys.executable, "-m", "orthotrain", "inspect", file]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"inspect of {file} failed with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss


def in_fresh_process(size: str, operation: str, file: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", size, operation, file]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def growth(numbers: list[float], seconds: list[float]) -> tuple[float, float]:
    """Exponent of the line of growth, and what it says at ``FAR``."""
    slope, offset = np.polyfit(np.log(numbers), np.log(np.maximum(seconds, 1e-4)), 1)
    return float(slope), float(math.exp(offset + slope * math.log(FAR)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["10M", "50M", "124M", "350M"], choices=SIZES)
    parser.add_argument("--one", nargs=3, metavar=("SIZE", "OPERATION", "FILE"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        print(json.dumps(one(*arguments.one)))
        return
    rows, seconds, numbers = [], {each: [] for each in OPERATIONS}, []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "weights.pt")
            saved = in_fresh_process(size, "save", file)
            numbers.append(saved["numbers"])
            for operation in OPERATIONS:
                if operation == "inspect":
                    took, peak = inspected(file)
                else:
                    found = in_fresh_process(size, operation, file)
                    took, peak = found["seconds"], found["peak"]
                seconds[operation].append(took)
                share = f"{peak / saved['weights']:.2f}"
                rows.append((size, f"{saved['numbers']:,}", operation, f"{took:.2f}", share))
    headings = ("size", "parameters", "operation", "s", "peak over weights")
    report("A GPT and what is done to the whole of it", headings, rows)
    if len(numbers) > 2:
        lines = [(each, *growth(numbers, seconds[each])) for each in OPERATIONS]
        cells = [(each, f"{slope:.2f}", f"{far:.3g}") for each, slope, far in lines]
        report("Growth", ("operation", "exponent", f"s at {FAR:.0e} by the line"), cells)


if __name__ == "__main__":
    main()
