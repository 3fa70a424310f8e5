"""Run folders without any training: what all share, and a generator of low-rank ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]


def write_rows(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_folder(
    folder: Path,
    names: Sequence[str],
    seeds: Sequence[int],
    training: Callable[[int, int], tuple[Iterable[dict[str, Any]], dict[str, Any]]],
    info: Mapping[str, Any],
) -> Path:
    """A run; ``training(index of a name, seed)`` gives the lines and the result of each."""
    folder.mkdir(parents=True)
    common = {"schema": 1, "scale": "cpu", "device": "cpu", "torch": "2.13.0", "cpu_count": 2}
    (folder / "run.json").write_text(json.dumps({**common, "seeds": list(seeds), **info}))
    (folder / "config.yaml").write_text(f"recipe: {info['recipe']}\n")
    for index, name in enumerate(names):
        for seed in seeds:
            target = folder / "variants" / name / f"seed-{seed}"
            target.mkdir(parents=True)
            rows, result = training(index, seed)
            write_rows(target / "metrics.jsonl", rows)
            result = {"variant": name, "seed": seed, **result}
            (target / "result.json").write_text(json.dumps(result))
    return folder


LAYERS = tuple(
    f"blocks.{block}.{part}"
    for block in range(4)
    for part in ("attn.q", "attn.k", "attn.v", "attn.out_proj", "mlp.0", "mlp.2")
)
SHAPES = {"mlp.0": (384, 96), "mlp.2": (96, 384)}
DENSE_SIZE = 450_000


@dataclass(frozen=True)
class Plan:
    """How one synthetic low-rank variant behaves."""

    title: str
    accuracy: float
    final_rank: float | None = None
    size: float = 1.0
    step_ms: float = 12.0
    note: str = ""

    def step_time(self, *, switched: bool) -> float:
        low = switched and self.final_rank is not None
        return self.step_ms * (0.4 + 0.9 * self.final_rank) if low else self.step_ms

    def sizes(self, *, dense: bool) -> dict[str, int]:
        total = int(DENSE_SIZE * self.size)
        rank = 1.0 if dense or self.final_rank is None else self.final_rank
        trainable = int(total * (0.05 + 0.95 * rank**2))
        low = int(total * (0.05 + 0.95 * (2 * rank + rank**2)))
        stored = total if dense or self.final_rank is None else low
        return {
            "trainable": trainable, "stored": stored, "dense": total, "weight_bytes": 4 * stored,
            "gradient_bytes": 4 * trainable, "state_bytes": 8 * trainable,
        }  # fmt: skip


PLANS = {
    "dense": Plan("dense", 0.975),
    "oialr-paper": Plan("OIALR, published", 0.966, final_rank=0.62, note="beta 0.15, scaled"),
    "oialr-tuned": Plan("OIALR, tuned", 0.973, final_rank=0.25, note="energy 0.9 at half"),
    "narrow": Plan("narrow dense", 0.969, size=0.55, step_ms=8.0, note="width 64"),
}


def synthetic_run(
    folder: Path,
    *,
    variants: Sequence[str] = tuple(PLANS),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 400,
    epochs: int = 40,
    info: dict[str, object] | None = None,
) -> Path:
    plans = [(name, PLANS[name]) for name in variants]
    described = {
        "recipe": "digits-minivit",
        "baseline": "dense",
        "page": "orthotrain.lab.experiments.lowrank.page:PAGE",
        "variants": [{"name": name, "title": p.title, "note": p.note} for name, p in plans],
    }

    def training(index: int, seed: int) -> tuple[Rows, dict[str, Any]]:
        return _train(plans[index][1], steps, epochs, np.random.default_rng([index, seed]))

    return write_folder(folder, variants, seeds, training, {**described, **(info or {})})


def _train(
    plan: Plan, steps: int, epochs: int, random: np.random.Generator
) -> tuple[Rows, dict[str, Any]]:
    def noise(size: float) -> float:
        return size * float(random.standard_normal())

    per_epoch = steps // epochs
    switch = steps // 3 if plan.final_rank is not None else None
    rows = [{"kind": "size", "step": step, **plan.sizes(dense=step == 0)} for step in (0, steps)]
    for step in range(0, steps + 1, max(1, per_epoch // 2)):
        progress, switched = step / steps, switch is not None and step > switch
        loss = 2.3 * math.exp(-6 * progress) + 0.02 + (1 - plan.accuracy)
        rows.append({
            "kind": "step", "step": step, "epoch": step / per_epoch, "lr": 0.001 * (1 - progress),
            "loss": loss * math.exp(noise(0.15)),
            "step_ms": plan.step_time(switched=switched) * (1 + abs(noise(0.05))),
        })  # fmt: skip
        if step and step % per_epoch == 0:
            accuracy = plan.accuracy - 0.8 * math.exp(-9 * progress) + noise(0.004)
            at = {"step": step, "epoch": step // per_epoch}
            rows.append({"kind": "eval", **at, "split": "validation", "accuracy": accuracy,
                         "loss": 0.1 + math.exp(-5 * progress)})  # fmt: skip
            if plan.final_rank is None and step > per_epoch:
                for depth, layer in enumerate(LAYERS):
                    lost = (0.3 - 0.005 * depth) * math.exp(-3 * progress) * (0.5 + progress)
                    rows.append({"kind": "stability", **at, "layer": layer, "mixing": 0.9,
                                 "stability": 1 - lost + noise(0.004)})  # fmt: skip
    rows += _rank_rows(plan, steps, switch, random)
    sizes = plan.sizes(dense=False)
    accuracy = plan.accuracy + noise(0.004)
    return sorted(rows, key=lambda row: row["step"]), {
        "validation_accuracy": accuracy + 0.003, "test_accuracy": accuracy,
        "validation_loss": 0.11, "test_loss": 0.12, **sizes,
        "stored_folded": int(sizes["stored"] * (0.8 if plan.final_rank else 1.0)),
        "training_bytes": sum(sizes[f"{k}_bytes"] for k in ("weight", "gradient", "state")),
        "step_ms_dense_phase": plan.step_ms + noise(0.1),
        "step_ms_final": plan.step_time(switched=True) + noise(0.1),
        "peak_rss_bytes": None, "switch_step": switch, "steps": steps,
        "seconds": steps * plan.step_ms / 1000,
        "settings": {"lr": 0.001, "adaptive": {"rank_rtol": plan.final_rank}},
    }  # fmt: skip


def _rank_rows(plan: Plan, steps: int, switch: int | None, random: np.random.Generator) -> Rows:
    rows: Rows = []
    for depth, layer in enumerate(LAYERS):
        shape = SHAPES.get(layer.split(".", 2)[2], (96, 96))
        row = {"kind": "rank", "layer": layer, "full_rank": 96, "shape": list(shape)}
        rows.append({**row, "step": 0, "rank": 96, "form": "dense"})
        if switch is None:
            continue
        first = switch + (len(LAYERS) - depth) * (steps - switch) // (2 * len(LAYERS))
        goal = plan.final_rank * (0.7 + 0.6 * depth / len(LAYERS))
        for at, share in ((first, 0.8), ((first + steps) // 2, 0.5), (steps, 0.0)):
            relative = min(1.0, goal + share * (1 - goal))
            rank = max(1, int(96 * relative) - int(random.integers(0, 4)))
            form = "factored" if rank < 60 else "materialized"
            rows.append({**row, "step": at, "rank": rank, "form": form})
    if switch is not None:
        rows.append({"kind": "event", "step": switch, "method": "oialr", "event": "switch"})
        middle = plan.sizes(dense=False)
        start = {**middle, "stored": int(middle["stored"] * 1.6)}
        rows.append({"kind": "size", "step": switch, **start, "weight_bytes": 4 * start["stored"]})
        rows.append({"kind": "size", "step": (switch + steps) // 2, **middle})
    return rows
