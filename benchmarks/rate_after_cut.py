"""Best learning rate of the training after a cut, by size and length, beside the rule's rate.

A byte-level GPT is trained on the sources of Python's own standard library, then cut to several
sizes in the metric of the loss. Each size is trained on with the dense model as teacher, for
several lengths, at every rate of a grid. All rates of one size, length and seed see the same
batches, so they are paired. Held-out files decide, in bits per byte.

What is finished is kept in ``--folder``: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _measure import report
from orthotrain import rate_after_cut, sizes, teacher_loss
from orthotrain.data.stdlib_text import load_stdlib
from orthotrain.files import write_atomically
from orthotrain.lowrank import Branch
from orthotrain.methods.copies import copy_together
from orthotrain.models import GPT

CONTEXT, WIDTH, DEPTH, HEADS = 64, 128, 2, 4
BATCH, WARMUP, CLIP = 16, 0.05, 1.0
BATCHES_FOR_METRIC = 16
HELD_OUT_BATCHES, HELD_OUT_SIZE = 32, 64


@dataclass(frozen=True)
class Settings:
    """The dense training, the sizes and lengths after it, and rates as parts of its peak."""

    steps: int
    peak: float
    shares: tuple[float, ...]
    lengths: tuple[float, ...]
    parts: tuple[float, ...]


@dataclass(frozen=True)
class Text:
    """The bytes to train on and those that are held out."""

    train: Tensor
    held: Tensor

    @classmethod
    def load(cls) -> Text:
        """The standard library."""
        data = load_stdlib()
        return cls(data.train, data.validation)

    def batch(self, generator: torch.Generator) -> Tensor:
        """``(batch, context + 1)`` bytes to train on."""
        return _windows(self.train, generator, BATCH)

    @cached_property
    def held_batches(self) -> list[Tensor]:
        """The same windows for every model."""
        generator = torch.Generator().manual_seed(1234)
        return [_windows(self.held, generator, HELD_OUT_SIZE) for _ in range(HELD_OUT_BATCHES)]

    @torch.no_grad()
    def bits(self, model: nn.Module) -> float:
        """Held-out bits per byte of a model."""
        losses = [float(loss_of(model, batch)) for batch in self.held_batches]
        return statistics.mean(losses) / math.log(2)


def _windows(text: Tensor, generator: torch.Generator, size: int) -> Tensor:
    starts = torch.randint(len(text) - CONTEXT, (size, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT + 1)].long()


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def taught_loss(model: nn.Module, teacher: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    with torch.no_grad():
        theirs = teacher(batch[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    return teacher_loss(logits, theirs, loss)


def network(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = GPT(
        context=CONTEXT, width=WIDTH, depth=DEPTH, heads=HEADS,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    return model, optimizer


def trained(  # noqa: PLR0913  # a training and its schedule
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    text: Text,
    *,
    steps: int,
    rate: float,
    seed: int,
    teacher: nn.Module | None = None,
) -> None:
    """Warm up to a rate, then a cosine to zero."""
    generator = torch.Generator().manual_seed(seed)
    warmup = max(1, round(WARMUP * steps))
    for step in range(steps):
        done = max(0.0, (step - warmup) / max(1, steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * done)))
        optimizer.zero_grad()
        batch = text.batch(generator)
        loss = loss_of(model, batch) if teacher is None else taught_loss(model, teacher, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()


def dense(folder: Path, settings: Settings, seed: int) -> None:
    """The dense training of a seed."""
    torch.set_num_threads(1)
    path = folder / f"dense-{seed}.pt"
    if path.exists():
        return
    text = Text.load()
    model, optimizer = network(seed)
    trained(model, optimizer, text, steps=settings.steps, rate=settings.peak, seed=seed)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(path, content.getvalue())


def branches(folder: Path, settings: Settings, seed: int, share: float) -> None:
    """One size of a seed: every length at every rate that is not in the folder yet."""
    torch.set_num_threads(1)
    path, cells = cells_of(folder, seed, share)
    wanted = [
        (length, part) for length in settings.lengths for part in settings.parts
        if key_of(length, part) not in cells
    ]  # fmt: skip
    if not wanted:
        return
    text = Text.load()
    model, optimizer = network(seed)
    state = torch.load(folder / f"dense-{seed}.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    generator = torch.Generator().manual_seed(10_000 + seed)
    data = [text.batch(generator) for _ in range(BATCHES_FOR_METRIC)]

    def train_on(branch: Branch) -> None:
        cells["cut"] = {
            "dense": text.bits(branch.teacher), "bits": text.bits(branch.model),
            "loss_before": branch.loss_before, "loss_after": branch.loss_after,
            "stored": branch.compression.stored / branch.compression.stored_before,
        }  # fmt: skip
        for length, part in wanted:
            twin, own = copy_together(branch.model, branch.optimizer, what="rate_after_cut")
            trained(
                twin, own, text, steps=steps_of(settings, length), rate=part * settings.peak,
                seed=20_000 + seed, teacher=branch.teacher,
            )  # fmt: skip
            cells[key_of(length, part)] = text.bits(twin)
            write_atomically(path, json.dumps(cells, indent=1).encode())

    sizes(model, optimizer, [share], train_on=train_on, data=data, loss=loss_of)


def cells_of(folder: Path, seed: int, share: float) -> tuple[Path, dict[str, Any]]:
    path = folder / f"cells-{seed}-{share:g}.json"
    return path, json.loads(path.read_text()) if path.exists() else {}


def key_of(length: float, part: float) -> str:
    return f"{length:g} of the steps, {part:g} of the peak"


def steps_of(settings: Settings, length: float) -> int:
    return max(1, round(length * settings.steps))


def between(parts: Sequence[float], bits: Sequence[float], part: float) -> float:
    """Bits at a rate between two of the grid, linear in its logarithm; beyond it, at its end."""
    part = min(max(part, parts[0]), parts[-1])
    for i in range(1, len(parts)):
        if part <= parts[i]:
            weight = math.log(part / parts[i - 1]) / math.log(parts[i] / parts[i - 1])
            return (1 - weight) * bits[i - 1] + weight * bits[i]
    return bits[-1]


def rows_of(folder: Path, settings: Settings, seeds: int) -> list[list[str]]:
    rows = []
    for share in settings.shares:
        found = [cells_of(folder, seed, share)[1] for seed in range(seeds)]
        for length in settings.lengths:
            rows.append(row_of(found, settings, length))
    return rows


def row_of(found: Sequence[dict[str, Any]], settings: Settings, length: float) -> list[str]:
    """One size and length: bits at each rate, the best one, and the rule's beside it."""
    cuts, parts = [cells["cut"] for cells in found], settings.parts
    by_seed = [[cells[key_of(length, part)] for part in parts] for cells in found]
    bits = [statistics.mean(column) for column in zip(*by_seed, strict=True)]
    best = min(range(len(bits)), key=bits.__getitem__)
    rule = statistics.mean(
        rate_after_cut(
            1.0, steps=steps_of(settings, length), dense_steps=settings.steps,
            loss_before=cut["loss_before"], loss_after=cut["loss_after"],
        )
        for cut in cuts
    )  # fmt: skip
    # Paired: each seed's own bits at the rule's rate, above its own at the common best.
    above = [between(parts, own, rule) - own[best] for own in by_seed]
    spread = f" +-{statistics.stdev(above):.4f}" if len(above) > 1 else ""
    stored, alone = (statistics.mean(cut[key] for cut in cuts) for key in ("stored", "bits"))
    rise = statistics.mean(cut["loss_after"] / cut["loss_before"] - 1 for cut in cuts)
    return [
        f"{stored:.3f}", f"{rise:+.4f}", f"{length:g}", f"{alone:.4f}",
        *(f"{value:.4f}" for value in bits), f"{parts[best]:.3g}", f"{rule:.3g}",
        f"{rule / parts[best]:.2f}", f"{statistics.mean(above):+.4f}{spread}",
    ]  # fmt: skip


def opened(folder: Path, settings: Settings) -> None:
    """A folder holds the numbers of one choice of settings; shares and grids may grow."""
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / "settings.json", {"steps": settings.steps, "peak": settings.peak}
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise SystemExit(f"{folder} holds {path.read_text()}, got {wanted}; name another --folder")
    path.write_text(json.dumps(wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000, help="of the dense training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--peak", type=float, default=6e-3, help="rate of the dense training")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.75, 0.5, 0.3))
    parser.add_argument("--lengths", type=float, nargs="+", default=(0.05, 0.1, 0.2, 0.4))
    parser.add_argument(
        "--parts", type=float, nargs="+", default=(1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        help="rates of the grid, as parts of the peak",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path("runs/rate_after_cut"))
    given = vars(parser.parse_args())
    folder, seeds, jobs = given.pop("folder"), given.pop("seeds"), given.pop("jobs")
    given = {k: tuple(sorted(v)) if k == "parts" else v for k, v in given.items()}
    settings = Settings(**given)
    opened(folder, settings)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        starts = [pool.submit(dense, folder, settings, seed) for seed in range(seeds)]
        for start in starts:
            start.result()
        cells = [
            pool.submit(branches, folder, settings, seed, share)
            for seed in range(seeds) for share in settings.shares
        ]  # fmt: skip
        for cell in cells:
            cell.result()
    report(
        f"Bits per byte on held-out files by rate (parts of the dense peak, {settings.peak:g}), "
        f"mean of {seeds} seed(s), dense {settings.steps} steps",
        (
            "stored", "loss", "length", "cut alone", *(f"{part:.3g}" for part in settings.parts),
            "best", "rule", "rule/best", "bits above best",
        ),
        rows_of(folder, settings, seeds),
    )  # fmt: skip


if __name__ == "__main__":
    main()
