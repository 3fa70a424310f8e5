"""A generator of plausible run folders of generators: every treatment, Adam and SGD."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.report.synthetic import write_folder

TREATMENTS = {
    "baseline": [],
    "nog": ["nog"],
    "olr": ["olr"],
    "ol": ["ol"],
    "nog-olr": ["nog", "olr"],
    "retraction": ["retraction"],
    "nog-retraction": ["nog", "retraction"],
    "nog-update": ["nog-update"],
    "nog-lr3": ["nog"],
    "baseline-lr3": [],
    "baseline-sgd": [],
    "olr-sgd": ["olr"],
}
#: Alignment added to that of the baseline; OLR never acts under Adam.
EFFECTS = {"ol": 0.2, "retraction": 0.1, "nog-retraction": 0.1, "olr-sgd": 0.05}


def latent_run(
    folder: Path,
    *,
    names: Sequence[str] = tuple(TREATMENTS),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    effects: Mapping[str, float] | None = None,
    frechet: Mapping[str, float] | None = None,
    noise: float = 0.01,
) -> Path:
    known, far = {**EFFECTS, **(effects or {})}, frechet or {}
    info = {
        "recipe": "latent-linear",
        "page": "orthotrain.lab.experiments.latent.page:PAGE",
        "baseline": "baseline",
        "variants": [
            {"name": name, "title": name.upper(), "note": "", "treatments": TREATMENTS[name]}
            for name in names
        ],
    }

    def training(index: int, seed: int) -> tuple[Iterable[dict[str, Any]], dict[str, Any]]:
        name = names[index]
        shared = float(np.random.default_rng(seed).standard_normal())
        # Under Adam OLR gives the very numbers of the baseline.
        own = np.random.default_rng([0 if name in ("baseline", "olr") else index + 1, seed])
        alignment = 0.6 + known.get(name, 0.0) + 0.05 * shared
        scores = {
            "alignment": alignment + noise * float(own.standard_normal()),
            "alignment_sefa": 0.97 + 0.001 * float(own.standard_normal()),
            "alignment_rotated": 0.5,
            "frechet": 5 + far.get(name, 0.0) + 0.1 * float(own.standard_normal()),
            "orthonormality_error": 0.0 if "retraction" in TREATMENTS[name] else 3.0,
        }
        if name == "baseline":
            scores["alignment_householder"] = 0.9
        sizes = {"step_ms": 3.0, "seconds": 6.0, "steps": 40, "trainable": 454}
        return _rows(name), {"scores": scores, "peak_rss_bytes": 3e8, **sizes}

    return write_folder(folder, names, seeds, training, info)


def _rows(name):
    treatments = TREATMENTS[name]
    for step in range(10, 50, 10):
        yield {"kind": "step", "step": step, "loss": 1.0, "discriminator_loss": 0.5, "lr": 1e-3}
        deviation = 1e-7 if "retraction" in treatments else 0.1 * step
        yield {"kind": "latent", "step": step, "layer": "subspace", "gram_deviation": deviation}
        for what in ("weight", "gradient", "update"):
            yield {
                "kind": "condition", "step": step, "what": what, "layer": "subspace",
                "condition_range": 2.0 + step,
            }  # fmt: skip
        if "olr" in treatments:
            used = name.endswith("-sgd")
            yield {
                "kind": "method", "method": "optimal_learning_rate", "step": step, "used": used,
                "eta": 1e-3 if used else None, "lr": 1e-2,
            }  # fmt: skip


def change_scores(folder: Path, name: str, seed: int, changes: Mapping[str, float]) -> None:
    """Other or further scores of one training."""
    path = folder / "variants" / name / f"seed-{seed}" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "scores": {**result["scores"], **changes}}))


def rename_scores(folder: Path, names: Mapping[str, str]) -> None:
    """Scores of another kind of run; those that are not named are dropped, but for Frechet."""
    for path in folder.glob("variants/*/*/result.json"):
        result = json.loads(path.read_text())
        kept = {names.get(key, key): value for key, value in result["scores"].items()}
        scores = {k: v for k, v in kept.items() if k == "frechet" or k in names.values()}
        path.write_text(json.dumps({**result, "scores": scores}))


def write_frames(folder: Path, names: Sequence[str], *, seed: int = 0, channels: int = 1) -> None:
    """Traversals of two coordinates: the second moves the image, the first does not."""
    values = np.array([-1.0, 0.0, 1.0])
    for name in names:
        frames = np.full((2, 3, 2, 8, 8, channels), 100, dtype=np.uint8)
        frames[1] += (50 * values).astype(np.int8)[:, None, None, None, None].astype(np.uint8)
        np.savez(
            folder / "variants" / name / f"seed-{seed}" / "traversals.npz",
            frames=frames,
            base=np.full((2, 8, 8, channels), 100, dtype=np.uint8),
            base_values=np.full((2, 2), 0.3),
            values=values,
            activeness=np.array([0.0, 1.0]),
        )
