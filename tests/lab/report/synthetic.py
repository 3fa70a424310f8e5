"""A generator of plausible low-rank run folders: reports are tested without any training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LAYERS = tuple(
    f"blocks.{block}.{part}"
    for block in range(4)
    for part in ("attn.q", "attn.k", "attn.v", "attn.out_proj", "mlp.0", "mlp.2")
)
SHAPES = {"mlp.0": (384, 96), "mlp.2": (96, 384)}
DENSE_SIZE = 450_000


@dataclass(frozen=True)
class Plan:
    """How one synthetic variant behaves."""

    title: str
    accuracy: float
    final_rank: float | None = None
    size: float = 1.0
    step_ms: float = 12.0
    note: str = ""


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
    folder.mkdir(parents=True)
    described = {
        "schema": 1,
        "recipe": "digits-minivit",
        "scale": "cpu",
        "created": "2025-01-02T03:04:05Z",
        "command": "orthotrain train",
        "orthotrain": "0.1.0",
        "torch": "2.13.0",
        "python": "3.11.7",
        "platform": "Linux",
        "cpu_count": 2,
        "threads": 1,
        "device": "cpu",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": False,
        "baseline": "dense",
        "page": "orthotrain.lab.experiments.lowrank.page:PAGE",
        "variants": [
            {"name": name, "title": PLANS[name].title, "note": PLANS[name].note}
            for name in variants
        ],
        "seeds": list(seeds),
        **(info or {}),
    }
    (folder / "run.json").write_text(json.dumps(described))
    (folder / "config.yaml").write_text("recipe: digits-minivit\nlr: 0.001\n")
    for index, variant in enumerate(variants):
        for seed in seeds:
            random = np.random.default_rng([index, seed])
            target = folder / "variants" / variant / f"seed-{seed}"
            target.mkdir(parents=True)
            rows, result = _train(variant, seed, steps, epochs, random)
            (target / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (target / "result.json").write_text(json.dumps(result))
    return folder


def _train(
    variant: str, seed: int, steps: int, epochs: int, random: np.random.Generator
) -> tuple[list[dict[str, object]], dict[str, object]]:
    plan = PLANS[variant]
    per_epoch = steps // epochs
    switch = steps // 3 if plan.final_rank is not None else None
    rows: list[dict[str, object]] = []
    for step in range(0, steps + 1, max(1, per_epoch // 2)):
        rows += _step_rows(plan, step, steps, per_epoch, switch, random)
        if step and step % per_epoch == 0:
            rows += _epoch_rows(plan, step, steps, per_epoch, switch, random)
    rows += _size_rows(plan, 0, dense=True)
    rows += _rank_rows(plan, steps, switch, random)
    rows.sort(key=lambda row: row["step"])
    accuracy = plan.accuracy + 0.004 * float(random.standard_normal())
    size = _size(plan, dense=False)
    return rows, {
        "variant": variant,
        "seed": seed,
        "validation_accuracy": accuracy + 0.003,
        "test_accuracy": accuracy,
        "validation_loss": 0.11,
        "test_loss": 0.12,
        "trainable": size["trainable"],
        "stored": size["stored"],
        "stored_folded": int(size["stored"] * (0.8 if plan.final_rank else 1.0)),
        "dense": size["dense"],
        "step_ms_dense_phase": plan.step_ms + 0.1 * float(random.standard_normal()),
        "step_ms_final": _step_ms(plan, True) + 0.1 * float(random.standard_normal()),
        "weight_bytes": size["weight_bytes"],
        "gradient_bytes": size["gradient_bytes"],
        "state_bytes": size["state_bytes"],
        "training_bytes": size["weight_bytes"] + size["gradient_bytes"] + size["state_bytes"],
        "peak_rss_bytes": None,
        "switch_step": switch,
        "steps": steps,
        "seconds": steps * plan.step_ms / 1000,
        "settings": {"lr": 0.001, "adaptive": {"rank_rtol": plan.final_rank}},
    }


def _step_ms(plan: Plan, switched: bool) -> float:
    low_rank = switched and plan.final_rank is not None
    return plan.step_ms * (0.4 + 0.9 * (plan.final_rank or 0)) if low_rank else plan.step_ms


def _step_rows(plan, step, steps, per_epoch, switch, random):
    progress = step / steps
    loss = 2.3 * math.exp(-6 * progress) + 0.02 + (1 - plan.accuracy)
    return [
        {
            "kind": "step",
            "step": step,
            "epoch": step / per_epoch,
            "loss": loss * math.exp(0.15 * float(random.standard_normal())),
            "lr": 0.001 * (1 - progress),
            "step_ms": _step_ms(plan, switch is not None and step > switch)
            * (1 + 0.05 * abs(float(random.standard_normal()))),
        }
    ]


def _epoch_rows(plan, step, steps, per_epoch, switch, random):
    progress = step / steps
    epoch = step // per_epoch
    rows = [
        {
            "kind": "eval",
            "step": step,
            "epoch": epoch,
            "split": "validation",
            "loss": 0.1 + math.exp(-5 * progress),
            "accuracy": plan.accuracy
            - 0.8 * math.exp(-9 * progress)
            + 0.004 * float(random.standard_normal()),
        }
    ]
    if plan.final_rank is None and epoch > 1:
        for depth, layer in enumerate(LAYERS):
            stability = 1 - (0.3 - 0.005 * depth) * math.exp(-3 * progress) * (0.5 + progress)
            rows.append(
                {
                    "kind": "stability",
                    "step": step,
                    "epoch": epoch,
                    "layer": layer,
                    "stability": stability + 0.004 * float(random.standard_normal()),
                    "mixing": 1 - 0.4 * math.exp(-4 * progress),
                }
            )
    return rows


def _size(plan: Plan, *, dense: bool) -> dict[str, int]:
    total = int(DENSE_SIZE * plan.size)
    rank = 1.0 if dense or plan.final_rank is None else plan.final_rank
    low = not dense and plan.final_rank is not None
    trainable = int(total * (0.05 + 0.95 * rank**2))
    stored = int(total * (0.05 + 0.95 * (2 * rank + rank**2))) if low else total
    return {
        "trainable": trainable,
        "stored": stored,
        "dense": total,
        "weight_bytes": 4 * stored,
        "gradient_bytes": 4 * trainable,
        "state_bytes": 8 * trainable,
    }


def _size_rows(plan: Plan, step: int, *, dense: bool) -> list[dict[str, object]]:
    return [{"kind": "size", "step": step, **_size(plan, dense=dense)}]


def _rank_rows(plan, steps, switch, random):
    rows = []
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
        middle = _size(plan, dense=False)
        start = {**middle, "stored": int(middle["stored"] * 1.6)}
        start["weight_bytes"] = 4 * start["stored"]
        rows.append({"kind": "size", "step": switch, **start})
        rows.append({"kind": "size", "step": (switch + steps) // 2, **middle})
    rows += _size_rows(plan, steps, dense=False)
    return rows
