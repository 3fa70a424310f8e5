"""Run folders of the language experiment without any training. Every number here is made up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.report.synthetic import Rows, write_folder

DENSE = 1_000_000
STEPS = 1000
#: What is looked at while training is another part of the files than what decides.
LOOK = 0.05
WORK = 6e15
LAYERS = tuple(f"blocks.{i}.{part}" for i in range(4) for part in ("qkv", "out", "up", "down"))


@dataclass(frozen=True)
class Plan:
    """One variant: bits at the end, stored share, compute in dense runs before and in it."""

    title: str
    bits: float
    stored: float
    work: float
    before: float = 0.0
    steps: float = 1.0
    start: float = 4.0
    cut: float | None = None
    cut_step: int = 8
    rank: float | None = None


def branch(title: str, bits: float, stored: float, steps: float, cut: float) -> Plan:
    work = steps * (0.3 + 0.9 * stored)
    return Plan(title, bits, stored, work, 1.0, steps, 1.93, cut, rank=0.7 * stored)


def half(title: str, bits: float, stored: float) -> Plan:
    work = 0.5 + 0.5 * stored
    return Plan(title, bits, stored, work, cut=2.3, cut_step=508, rank=0.7 * stored)


PLANS = {
    "dense": Plan("dense", 1.930, 1.0, 1.0),
    "branch-75-5": branch("branch, 75 %, + 5 % of the steps", 1.931, 0.75, 0.05, 1.934),
    "branch-50-5": branch("branch, 50 %, + 5 % of the steps", 1.993, 0.49, 0.05, 2.055),
    "branch-50-20": branch("branch, 50 %, + 20 % of the steps", 1.947, 0.49, 0.20, 2.055),
    "branch-50-20-alone": branch(
        "branch, 50 %, + 20 % of the steps, no teacher", 1.971, 0.49, 0.20, 2.055
    ),
    "branch-30-37": branch("branch, 30 %, + 37 % of the steps", 2.040, 0.31, 0.38, 3.1),
    "half-75": half("cut at half, 75 %", 1.945, 0.75),
    "half-50": half("cut at half, 50 %", 1.981, 0.49),
    "half-30": half("cut at half, 30 %", 2.061, 0.31),
    "narrow-75": Plan("narrow, 75 %", 1.941, 0.77, 0.77),
    "narrow-50": Plan("narrow, 50 %", 1.988, 0.48, 0.47),
    "narrow-30": Plan("narrow, 30 %", 2.050, 0.30, 0.28),
    "narrow-75-short": Plan("narrow, 75 %, short", 2.750, 0.77, 0.05, steps=0.065),
    "narrow-50-short": Plan("narrow, 50 %, short", 2.240, 0.48, 0.15, steps=0.32),
    "narrow-30-short": Plan("narrow, 30 %, short", 2.090, 0.30, 0.24, steps=0.83),
    "narrow-50-teacher": Plan("narrow, 50 %, with teacher", 1.909, 0.48, 0.81, 1.0),
    "narrow-50-teacher-short": Plan(
        "narrow, 50 %, with teacher, short", 2.62, 0.48, 0.15, 1.0, 0.2
    ),
    "narrow-30-teacher": Plan("narrow, 30 %, with teacher", 1.969, 0.30, 0.62, 1.0),
    "narrow-30-teacher-short": Plan(
        "narrow, 30 %, with teacher, short", 2.26, 0.30, 0.24, 1.0, 0.3
    ),
    "oialr-paper": Plan(
        "OIALR, published settings", 2.31, 0.92, 0.94, cut=2.4, cut_step=300, rank=0.4
    ),
    "frozen-50": Plan("frozen bases, 50 %", 2.052, 0.49, 0.74, cut=2.3, cut_step=508, rank=0.35),
    "frozen-50-plain": Plan(
        "frozen bases, 50 %, plain", 2.19, 0.49, 0.74, cut=2.3, cut_step=508, rank=0.35
    ),
}
DEMO = ("dense", "branch-75-5", "branch-50-20", "branch-30-37", "narrow-75", "narrow-50",
        "narrow-50-short", "narrow-30", "oialr-paper")  # fmt: skip


def language_run(
    folder: Path,
    *,
    names: Sequence[str] = tuple(PLANS),
    seeds: Sequence[int] = (0, 1, 2),
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    noise: float = 0.003,
    test: bool = True,
) -> Path:
    """A run; ``changes`` gives the plans of variants other values."""
    plans = [Plan(**{**vars(PLANS[name]), **(changes or {}).get(name, {})}) for name in names]
    info = {
        "recipe": "stdlib-gpt",
        "page": "orthotrain.lab.experiments.language.page:PAGE",
        "baseline": "dense",
        "variants": [
            {"name": name, "title": plan.title, "note": ""}
            for name, plan in zip(names, plans, strict=True)
        ],
    }

    def training(index: int, seed: int) -> tuple[Rows, dict[str, Any]]:
        shared = 0.02 * float(np.random.default_rng(seed).standard_normal())
        own = noise * float(np.random.default_rng([index, seed]).standard_normal())
        return _train(plans[index], shared + own, test=test)

    return write_folder(folder, names, seeds, training, info)


def _train(plan: Plan, shift: float, *, test: bool) -> tuple[Rows, dict[str, Any]]:
    steps = max(20, int(STEPS * plan.steps))
    rows: Rows = [{"kind": "step", "step": s, "loss": 2.0, "step_ms": 9.0} for s in (1, steps)]
    for step in np.linspace(0, steps, 21).astype(int).tolist():
        left = np.exp(-6 * step / steps)
        bits = plan.bits + shift + (plan.start - plan.bits) * float(left)
        rows.append({"kind": "eval", "step": step, "split": "validation", "bits": bits + LOOK})
    switch = None
    if plan.cut is not None:
        switch = plan.cut_step
        rows.append({"kind": "cut", "step": switch, "bits": plan.cut + shift + LOOK,
                     "bits_before": plan.start + shift + LOOK,
                     "compute": plan.work * WORK * switch / steps})  # fmt: skip
    for i, layer in enumerate(LAYERS if plan.rank else ()):
        for step, rank, form in ((0, 64, "dense"), (switch, int(64 * plan.rank) + i, "factored")):
            rows.append({"kind": "rank", "step": step, "layer": layer, "rank": rank,
                         "full_rank": 64, "form": form, "shape": [128, 64]})  # fmt: skip
    stored = int(DENSE * plan.stored)
    loss = plan.bits + shift
    return sorted(rows, key=lambda row: row["step"]), {
        "validation_bits": loss + 0.004, "test_bits": loss if test else None,
        "stored": stored, "stored_folded": stored, "dense": DENSE, "trainable": stored,
        "compute": plan.work * WORK, "compute_before": plan.before * WORK, "switch_step": switch,
        "data_sha256": "ab12", "training_bytes": 16 * stored, "weight_bytes": 4 * stored,
        "gradient_bytes": 4 * stored, "state_bytes": 8 * stored, "step_ms_final": 9 * plan.stored,
        "step_ms_dense_phase": 9.0, "seconds": 9e-3 * steps, "steps": steps,
        "peak_rss_bytes": None,
    }  # fmt: skip


def change_result(folder: Path, name: str, seed: int, **values: Any) -> None:
    """Other values in one result."""
    file = folder / "variants" / name / f"seed-{seed}" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def unfinish(folder: Path, name: str, seed: int) -> None:
    """One training that stopped on its way."""
    (folder / "variants" / name / f"seed-{seed}" / "result.json").unlink()
