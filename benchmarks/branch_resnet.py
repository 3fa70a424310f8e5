"""A small residual network on CIFAR-10: branches of a dense run against narrow ones from scratch.

The ResNet-18 of the spectral recipes, narrow, on a few thousand images. At each stored size the
finished dense network is cut by ``orthotrain.sizes`` and trained on with the dense one as teacher,
for 5 to 20 % of its steps, at the rate that ``rate_after_cut`` says. Its rival is a network of
that size from scratch, for the whole schedule. Learning rates come from a grid, tried on a seed of
its own; the validation part decides. The test part is read once per training, after its last step.

What is finished is kept in ``--folder``: the same command goes on where it was stopped. Images:
``ORTHOTRAIN_DATA``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from _measure import report
from orthotrain.data.batches import BatchStream
from orthotrain.data.cifar10 import load_cifar10
from orthotrain.data.splits import ImageData
from orthotrain.files import write_atomically
from orthotrain.lab.experiments.branches.branching import Branching
from orthotrain.lab.experiments.branches.start import OwnRate, Start, counted_branch
from orthotrain.lab.experiments.branches.steps import CUT_BATCHES, branch_steps
from orthotrain.lab.experiments.classifier.optim import adamw
from orthotrain.lab.experiments.classifier.trainer import batch_loss, evaluate
from orthotrain.lab.experiments.narrow import numbers_of
from orthotrain.models import ResNet

# Stored share: shares of the dense steps that its branches take.
BRANCHES = {0.75: (0.05,), 0.5: (0.05, 0.2), 0.3: (0.2,)}
RATES = (7.5e-4, 1.5e-3, 3e-3, 6e-3)
SEARCH_SEED = 100
BATCH, WARMUP, WEIGHT_DECAY, CLIP, TEACHER = 32, 0.05, 0.05, 1.0, 0.5


@dataclass(frozen=True)
class Settings:
    """What every number depends on."""

    width: int
    epochs: int
    limit: int


@dataclass(frozen=True)
class Trainings:
    """Finished trainings in a folder, and the data for those that are not."""

    folder: Path
    settings: Settings

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self._read().get("settings", asdict(self.settings))
        if kept != asdict(self.settings):
            raise SystemExit(f"{self.folder} holds trainings of {kept}; choose another --folder")

    @cached_property
    def data(self) -> ImageData:
        """Images; the test part is not decoded before it is asked for."""
        return load_cifar10(train_limit=self.settings.limit)

    @property
    def steps(self) -> int:
        """Optimizer steps of dense training."""
        return self.settings.epochs * (len(self.data.train) // BATCH)

    def _read(self) -> dict[str, Any]:
        file = self.folder / "finished.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def once(self, name: str, train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a training, trained now if it is not finished yet."""
        finished = self._read().get("trainings", {})
        if name not in finished:
            start = time.perf_counter()
            finished[name] = train() | {"seconds": time.perf_counter() - start}
            print(f"{name}: {finished[name]}", flush=True)
            kept = {"settings": asdict(self.settings), "trainings": finished}
            write_atomically(self.folder / "finished.json", json.dumps(kept, indent=1).encode())
        result: dict[str, Any] = finished[name]
        return result

    def weights(self, seed: int) -> Path:
        """Where the weights of a finished dense training are."""
        return self.folder / f"dense-{seed}.pt"


def network(width: int, *, seed: int = 0) -> ResNet:
    generator = torch.Generator().manual_seed(seed)
    return ResNet(depth=18, width=width, stem_channels=width, classes=10, generator=generator)


def narrow_width(width: int, share: float) -> int:
    """The smallest width that stores at least this share of the numbers."""
    aim = share * numbers_of(lambda: network(width))
    return next(w for w in range(1, width + 1) if numbers_of(lambda w=w: network(w)) >= aim)


def train_on(
    model: nn.Module,
    trainings: Trainings,
    *,
    rate: float,
    steps: int,
    seed: int,
    start: Start | None = None,
) -> dict[str, Any]:
    """Train in place; a ``start`` brings its teacher and what its cut has computed."""
    optimizer, scheduler = adamw(model, OwnRate(rate, WARMUP, WEIGHT_DECAY), total_steps=steps)
    branch = None if start is None else start.branch
    branching = Branching(
        model,
        "accuracy",
        None if branch is None else branch.teacher,
        TEACHER,
        cut_compute=0 if start is None else start.cut_compute,
    )
    batches = batches_of(trainings, seed=seed)
    for _ in range(steps):
        images, labels = batches.next_batch()
        with branching.passes():
            scores = model(images)
            loss = branching.loss(F.cross_entropy(scores, labels), scores, branching.taught(images))
            optimizer.zero_grad()
            loss.backward()
        clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        branching.meter.stepped()
    return {
        "validation": evaluate(model, trainings.data.validation).accuracy,
        "stored": sum(p.numel() for p in model.parameters()),
        "compute": branching.meter.operations,
        "rate": rate,
        "steps": steps,
    }


def batches_of(trainings: Trainings, *, seed: int) -> BatchStream:
    return BatchStream(trainings.data.train, batch_size=BATCH, seed=seed, crop_padding=4, flip=True)


def tested(model: nn.Module, trainings: Trainings, result: dict[str, Any]) -> dict[str, Any]:
    """The result with the accuracy on the test part."""
    return result | {"test": evaluate(model, trainings.data.read_test()).accuracy}


def from_scratch(
    trainings: Trainings, width: int, *, rate: float, seed: int, final: bool, keep: bool = False
) -> dict[str, Any]:
    """A training for the whole schedule; ``final`` reads the test part."""
    model = network(width, seed=seed)
    result = train_on(model, trainings, rate=rate, steps=trainings.steps, seed=seed)
    if keep:
        torch.save(model.state_dict(), trainings.weights(seed))
    return tested(model, trainings, result) if final else result


def after(
    trainings: Trainings, share: float, length: float, *, dense_rate: float, seed: int
) -> dict[str, Any]:
    """A branch of the finished dense training."""
    dense = network(trainings.settings.width)
    dense.load_state_dict(torch.load(trainings.weights(seed), weights_only=True))
    first = batches_of(trainings, seed=20_000 + seed)
    start = counted_branch(
        dense, share, batches=[first.next_batch() for _ in range(CUT_BATCHES)],
        loss=partial(batch_loss, label_smoothing=0.0),
    )  # fmt: skip
    steps = branch_steps(length, trainings.steps)
    rate = start.peak_rate(dense_rate, steps=steps, dense_steps=trainings.steps)
    model = start.model
    result = train_on(model, trainings, rate=rate, steps=steps, seed=10_000 + seed, start=start)
    return tested(model, trainings, result)


def best_rate(trainings: Trainings, name: str, width: int) -> float:
    """Of the grid, by the validation part of a seed that is not compared."""
    tried = {
        rate: trainings.once(
            f"{name} rate {rate:g} seed {SEARCH_SEED}",
            lambda rate=rate: from_scratch(
                trainings, width, rate=rate, seed=SEARCH_SEED, final=False
            ),
        )["validation"]
        for rate in RATES
    }
    best = max(tried, key=lambda rate: tried[rate])
    edge = " (at the edge of the grid)" if best in (min(RATES), max(RATES)) else ""
    print(f"{name}: rate {best:g}{edge}", flush=True)
    return best


def run(trainings: Trainings, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Every variant, one result per seed."""
    width = trainings.settings.width
    widths = {share: narrow_width(width, share) for share in BRANCHES}
    dense_rate = best_rate(trainings, "dense", width)
    rates = {s: best_rate(trainings, narrow_name(s), w) for s, w in widths.items()}
    found: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, seed: int, train: Callable[[], dict[str, Any]]) -> None:
        found.setdefault(name, []).append(trainings.once(f"{name} seed {seed}", train))

    for seed in seeds:
        add("dense", seed, lambda seed=seed: from_scratch(
            trainings, width, rate=dense_rate, seed=seed, final=True, keep=True,
        ))  # fmt: skip
        for share, lengths in BRANCHES.items():
            for length in lengths:
                add(branch_name(share, length), seed, lambda seed=seed, s=share, n=length: after(
                    trainings, s, n, dense_rate=dense_rate, seed=seed,
                ))  # fmt: skip
            add(narrow_name(share), seed, lambda seed=seed, s=share: from_scratch(
                trainings, widths[s], rate=rates[s], seed=seed, final=True,
            ))  # fmt: skip
    return found


def narrow_name(share: float) -> str:
    return f"narrow {share:.0%}"


def branch_name(share: float, length: float) -> str:
    return f"branch {share:.0%} + {length:.0%} of the steps"


def spread(values: Sequence[float]) -> str:
    std = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{std}"


def difference(ours: Sequence[float], other: Sequence[float]) -> str:
    """Mean of the paired differences in points and half of their 95 % interval by Student's t."""
    pairs = [100 * (a - b) for a, b in zip(ours, other, strict=True)]
    mean = statistics.fmean(pairs)
    if len(pairs) < 2:
        return f"{mean:+.2f} (one seed)"
    quantile = float(student.ppf(0.975, len(pairs) - 1))
    return f"{mean:+.2f} ± {quantile * statistics.stdev(pairs) / math.sqrt(len(pairs)):.2f}"


def tell(found: dict[str, list[dict[str, Any]]], settings: Settings) -> None:
    """The table of variants, then that of paired differences."""
    dense = found["dense"]

    def column(name: str, key: str) -> list[float]:
        return [float(one[key]) for one in found[name]]

    def percent(name: str, key: str) -> str:
        return f"{100 * statistics.fmean(column(name, key)) / dense[0][key]:.1f}"

    rows = [
        (name, spread(column(name, "test")), spread(column(name, "validation")),
         percent(name, "stored"), percent(name, "compute"), f"{results[0]['rate']:.2g}")
        for name, results in found.items()
    ]  # fmt: skip
    title = (
        f"ResNet-18, width {settings.width}, {settings.limit} images of CIFAR-10, "
        f"{settings.epochs} epochs, {len(dense)} seed(s)"
    )
    headings = ("variant", "test %", "validation %", "stored %", "compute % of dense", "rate")
    report(title, headings, rows)
    pairs = [
        (branch_name(share, length), other)
        for share, lengths in BRANCHES.items()
        for length in lengths
        for other in (narrow_name(share), "dense")
    ]
    report(
        "Paired differences, test points and half of the 95 % interval",
        ("variant", "beside", "difference", "compute over the other's"),
        [
            (ours, other, difference(column(ours, "test"), column(other, "test")),
             f"{found[ours][0]['compute'] / found[other][0]['compute']:.3f}")
            for ours, other in pairs
        ],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--limit", type=int, default=4000, help="training images")
    parser.add_argument("--folder", type=Path, default=Path("runs/branch-resnet"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if SEARCH_SEED in arguments.seeds:
        parser.error(f"seed {SEARCH_SEED} is that of the search for learning rates")
    torch.set_num_threads(arguments.threads)
    settings = Settings(arguments.width, arguments.epochs, arguments.limit)
    tell(run(Trainings(arguments.folder, settings), arguments.seeds), settings)


if __name__ == "__main__":
    main()
