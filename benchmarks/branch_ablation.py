"""What each ingredient of a branch is worth: one changed at a time, paired with the default.

Starts from the finished dense trainings of ``stdlib-gpt`` in a run folder. Each row cuts the dense
model to a share of its numbers and trains on for a part of the dense steps, with the same batches.
Held-out files decide, in bits per byte: right after the cut, and at the end. Positive differences
are worse than the default. What is finished is kept in ``--folder``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from _measure import report
from orthotrain import AdaptiveLowRank, NearestOrthogonalGradient, attach, teacher_loss
from orthotrain.data.stdlib_text import load_stdlib
from orthotrain.data.windows import WindowStream
from orthotrain.files import write_atomically
from orthotrain.lab.experiments.language.trainer import bits_per_byte
from orthotrain.lab.run.restore import read_network
from orthotrain.layers._factors import holds_pair
from orthotrain.linalg import polar_factor
from orthotrain.lowrank import collect
from orthotrain.lowrank import settings as lowrank_settings
from orthotrain.methods.copies import frozen_copy

CONTEXT, BATCH, WARMUP, CLIP, WINDOWS = 64, 12, 0.05, 1.0, 1024
SAMPLES, WATCHED = collect._FEWEST, lowrank_settings.WATCHED_STEPS


@dataclass(frozen=True)
class Row:
    """One ingredient changed: settings of the method, and what else is different."""

    settings: dict[str, Any] = field(default_factory=dict)
    teacher: bool = False
    nog: dict[str, Any] | None = None
    bounded: float | None = None
    samples: int | None = None
    watched: int = WATCHED


def rows() -> dict[str, Row]:
    third = {"every_steps": 1 / 6, "max_drop": 0.35}
    return {
        "default": Row(),
        "teacher": Row(teacher=True),
        "importance=input": Row({"importance": "input"}),
        "importance=weight (shares of energy)": Row({"importance": "weight"}),
        "2 watched steps for 8": Row(watched=2),
        "32 watched steps for 8": Row(watched=32),
        "768 samples per call for 128": Row(samples=768),
        "32 samples per call for 128": Row(samples=32),
        "optimizer_state=reset": Row({"optimizer_state": "reset"}),
        "three cuts for one": Row(third),
        "factor_step=2": Row({"factor_step": 2.0}),
        "factor_step=0.5": Row({"factor_step": 0.5}),
        "frozen bases": Row({"bases": "frozen"}),
        "frozen bases, core_step=1": Row({"bases": "frozen", "core_step": 1.0}),
        "frozen bases, importance=weight": Row({"bases": "frozen", "importance": "weight"}),
        "steps orthogonalized (NOG on the update)": Row(nog={"scale": "rms"}),
        "steps orthogonalized, norm kept": Row(nog={"scale": "gradient_norm"}),
        **{
            f"steps orthogonalized, bounded by spectral norms, {size:g} rates": Row(bounded=size)
            for size in (1.0, 3.0, 10.0, 30.0)
        },
    }


@contextmanager
def bounded_steps(model: nn.Module, radius: float) -> Iterator[None]:
    """Both factors step by an orthogonal matrix times ``radius / (|L| + |R| + 1)``, spectral norms.

    So the product of the two moves by no more than ``radius``, if that is at most 1 (Spectron,
    arXiv 2602.12429; the executed update is made orthogonal here, whatever the optimizer). A radius
    of 0 leaves the steps as they are.
    """
    layers = [module for module in model.modules() if radius and holds_pair(module)]
    before = [[factor.detach().clone() for factor in one.pair_of()] for one in layers]
    yield
    with torch.no_grad():
        for layer, pair in zip(layers, before, strict=True):
            norms = sum(torch.linalg.matrix_norm(factor, 2) for factor in pair)
            for factor, old in zip(layer.pair_of(), pair, strict=True):
                factor.copy_(old + radius / (norms + 1) * polar_factor(factor - old))


def branch(run: Path, seed: int, row: Row, *, share: float, length: float, rate: float) -> dict:
    """Bits of the dense model, right after the cut, and after the training that follows."""
    torch.set_num_threads(1)
    data = load_stdlib()
    checkpoint = run / "variants" / "dense" / f"seed-{seed}" / "checkpoint.pt"
    model = read_network(checkpoint).train()
    dense_steps = json.loads((checkpoint.parent / "result.json").read_text())["steps"]
    steps = round(length * dense_steps)
    teacher = frozen_copy(model) if row.teacher else None
    stream = WindowStream(data.train, batch_size=BATCH, length=CONTEXT, seed=40_000 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    collect._PART_OF_SIDE = 4 if row.samples is None else 10**9
    collect._FEWEST = row.samples or SAMPLES  # a process has many rows
    watched = lowrank_settings.WATCHED_STEPS = row.watched
    settings = {"delay_steps": watched, "stored_budget": share, "spread": False, **row.settings}
    methods = [AdaptiveLowRank(**settings)]
    if row.nog is not None:
        names = [
            name for name, m in model.named_modules() if type(m) is nn.Linear and name != "head"
        ]
        methods.append(NearestOrthogonalGradient(names, when="update", **row.nog))
    handle = attach(model, optimizer, *methods, total_steps=steps + watched)

    def bits() -> float:
        return bits_per_byte(model, data.validation, count=WINDOWS, length=CONTEXT)

    found = {"dense": bits()}
    warmup = max(1, round(WARMUP * steps))
    for step in range(-watched, steps):  # what is watched first moves nothing
        done = max(0.0, (step - warmup) / max(1, steps - warmup))
        lr = rate * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = lr if step >= 0 else 0.0
        read, told = stream.next_batch()
        scores = model(read).flatten(0, 1)
        loss = F.cross_entropy(scores, told.flatten())
        if teacher is not None:
            with torch.no_grad():
                known = teacher(read).flatten(0, 1)
            loss = teacher_loss(scores, known, loss)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        with bounded_steps(model, (row.bounded or 0) * optimizer.param_groups[0]["lr"]):
            optimizer.step()
        if step == -1:
            found["cut"] = bits()
    total = handle.summary().total
    return {**found, "end": bits(), "stored": total.stored / total.dense}


def cell(folder: Path, run: Path, seed: int, name: str, row: Row, options: dict) -> None:
    path = folder / f"{name.replace(' ', '_').replace('/', '_')}-{seed}.json"
    if not path.exists():
        write_atomically(path, json.dumps(branch(run, seed, row, **options)).encode())


def read(folder: Path, seed: int, name: str) -> dict:
    return json.loads(
        (folder / f"{name.replace(' ', '_').replace('/', '_')}-{seed}.json").read_text()
    )


def interval(values: list[float]) -> str:
    """Mean and half of the 95 % interval by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.4f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.4f} +-{half:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run of stdlib-gpt with finished dense trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--length", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rows", nargs="+", help="names that contain one of these")
    parser.add_argument("--folder", type=Path, default=Path("runs/branch_ablation"))
    given = parser.parse_args()
    options = {"share": given.share, "length": given.length, "rate": given.rate}
    chosen: Callable[[str], bool] = lambda name: (  # noqa: E731
        name == "default" or not given.rows or any(part in name for part in given.rows)
    )
    wanted = {name: row for name, row in rows().items() if chosen(name)}
    given.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        cells = [
            pool.submit(cell, given.folder, given.run, seed, name, row, options)
            for name, row in wanted.items() for seed in given.seeds
        ]  # fmt: skip
        for one in cells:
            one.result()
    found = {name: [read(given.folder, seed, name) for seed in given.seeds] for name in wanted}
    base = found["default"]
    table = []
    for name, some in found.items():
        cut, end = (
            interval([one[key] - other[key] for one, other in zip(some, base, strict=True)])
            if name != "default"
            else f"{statistics.mean(one[key] for one in some):.4f}"
            for key in ("cut", "end")
        )
        stored = statistics.mean(one["stored"] for one in some)
        table.append([name, f"{stored:.3f}", cut, end])
    dense = statistics.mean(one["dense"] for one in base)
    report(
        f"Bits per byte, difference to the default; {given.share:g} stored, {given.length:g} of "
        f"the dense steps at {given.rate:g}, seeds {', '.join(map(str, given.seeds))}; "
        f"dense {dense:.4f}",
        ("changed", "stored", "right after the cut", "at the end"),
        table,
    )


if __name__ == "__main__":
    main()
