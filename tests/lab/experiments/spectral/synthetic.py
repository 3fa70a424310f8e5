"""A generator of plausible spectral run folders: whitening or pooling with all treatments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.report.synthetic import write_folder
from orthotrain.lab.report.load import SeedRun, Variant

RANK, SIZE, RIDGE = 27, 64, 1e-2


@dataclass(frozen=True)
class Effect:
    """What one treatment does in the synthetic world, as added points and decades."""

    error: float = 0.0
    range_decades: float = 0.0
    scale_decades: float = 0.0


EFFECTS = {
    "ns": Effect(0.1, 0.0, -0.2),
    "sn": Effect(0.2, 0.1, -0.9),
    "ol": Effect(-0.1, -1.5, -0.7),
    "ow": Effect(0.6, -2.6, -1.0),
    "nog": Effect(-0.6, -1.2, 0.8),
    "olr": Effect(0.1, -0.2, -0.6),
}
TITLES = {
    "bn": "BatchNorm",
    "zca": "ZCA alone",
    "ns": "Newton-Schulz",
    "sn": "ZCA + SN",
    "ol": "ZCA + OL",
    "ow": "ZCA + OW",
    "nog": "ZCA + NOG",
    "olr": "ZCA + OLR",
    "nog-sn": "ZCA + NOG + SN",
    "nog-ol": "ZCA + NOG + OL",
    "nog-ow": "ZCA + NOG + OW",
    "nog-olr": "ZCA + NOG + OLR",
    "ow-olr": "ZCA + OW + OLR",
    "nog-ow-olr": "ZCA + NOG + OW + OLR",
    "zca-fixed": "ZCA alone, norm fixed",
    "nog-fixed": "ZCA + NOG, norm fixed",
    "olr-fixed": "ZCA + OLR, norm fixed",
    "nog-olr-fixed": "ZCA + NOG + OLR, norm fixed",
}
POOLING = {"bn": "avg", "zca": "gcp", "zca-fixed": "gcp-fixed"}


def treatments_of(name: str) -> list[str]:
    if name in ("bn", "avg"):
        return []
    parts = [part for part in name.split("-") if part not in ("zca", "gcp")]
    return ["root", *parts]


def spectral_run(
    folder: Path,
    *,
    names: Sequence[str] = tuple(TITLES),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 600,
    pooling: bool = False,
    effects: Mapping[str, Effect] | None = None,
    noise: float = 1.0,
) -> Path:
    known = {**EFFECTS, **(effects or {})}
    renamed = [POOLING.get(name, name) if pooling else name for name in names]
    variants = [
        {"name": ours, "title": _title(name, pooling), "treatments": treatments_of(name),
         "note": "a control" if "fixed" in name else ""}
        for ours, name in zip(renamed, names, strict=True)
    ]  # fmt: skip
    info = {
        "recipe": "texture-gcp" if pooling else "cifar10-dbn",
        "page": "orthotrain.lab.experiments.spectral.page:PAGE",
        "baseline": "avg" if pooling else "bn",
        "variants": variants,
    }

    def training(index: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        made = _Training(treatments_of(names[index]), seed, steps, known, noise, index)
        return made.rows(), made.result()

    return write_folder(folder, renamed, seeds, training, info)


def _title(name: str, pooling: bool) -> str:
    if not pooling:
        return TITLES[name]
    return {"bn": "average pooling"}.get(name, TITLES[name].replace("ZCA", "GCP"))


class _Training:
    def __init__(self, treatments, seed, steps, effects, noise, index):
        self.parts = [part for part in treatments if part not in ("root", "fixed")]
        self.treatments, self.seed, self.steps = treatments, seed, steps
        self.known = [effects[part] for part in self.parts]
        # The seed moves every variant alike; what is left differs from variant to variant.
        self.shared = np.random.default_rng(seed).standard_normal(2)
        self.random = np.random.default_rng([index, seed])
        self.noise = noise

    def normal(self) -> float:
        return self.noise * float(self.random.standard_normal())

    def scale(self, progress: float) -> float:
        if "fixed" in self.treatments:
            return 4.0
        decades = sum(effect.scale_decades for effect in self.known)
        return 10 ** (0.6 + (decades + 0.5) * (1 - math.exp(-4 * progress)))

    def conditions(self, progress: float) -> dict[str, float | None]:
        decades = sum(effect.range_decades for effect in self.known) * (1 - 2.7 ** (-6 * progress))
        largest = self.scale(progress) * 10 ** (0.02 * self.normal())
        ranged = 10 ** (5.9 + decades + 0.4 * math.sin(6 * progress) + 0.06 * self.normal())
        single = 10 ** (9.5 + 0.2 * decades + 0.3 * self.normal())
        double = 10 ** (16.4 + 0.1 * decades + 0.4 * self.normal())
        ridged = 1 + largest / RIDGE
        return {
            "condition_range": ranged,
            "condition_ridge": ridged if self.treatments else 1 + largest / 1e-5,
            "condition_float32": single,
            "condition_float64": double if self.random.random() > 0.03 else None,
            "largest": largest,
        }

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for step in range(0, self.steps + 1, 5):
            progress, at = step / self.steps, {"step": step, "epoch": step / 60}
            loss = 2.3 * math.exp(-4 * progress) + 0.1
            rows.append({
                "kind": "step", **at, "loss": loss * math.exp(0.1 * self.normal()),
                "lr": 0.1 * (1 - 0.9 * progress), "step_ms": 40.0,
            })  # fmt: skip
            rows += self._conditions(at, progress)
            rows += self._methods(at, progress)
            if step and step % 60 == 0:
                accuracy = 1 - self.error() / 100 - 0.5 * math.exp(-5 * progress)
                rows.append({"kind": "eval", **at, "split": "validation", "loss": loss,
                             "accuracy": accuracy})  # fmt: skip
        return rows

    def _conditions(self, at, progress):
        shared = {"kind": "condition", **at, "rtol": 1e-6, "dtype": "float32", "rank": RANK}
        yield {
            **shared, "what": "covariance", "layer": "bn1", "size": SIZE, "norm": 5.0,
            "ridge": RIDGE if self.treatments else 1e-5, **self.conditions(progress),
        }  # fmt: skip
        norm = 4.0 * math.sqrt(self.scale(progress))
        for what in ("weight", "gradient", "update"):
            yield {
                **shared, "what": what, "layer": "conv1", "size": RANK, "largest": 1.0,
                "condition_range": 10 ** (2.5 + 0.1 * self.normal()), "condition_ridge": None,
                "condition_float32": 300.0, "condition_float64": 300.0, "ridge": None,
                "norm": norm,
            }  # fmt: skip

    def _methods(self, at, progress):
        shared = {"kind": "method", **at, "layer": "conv1"}
        if "nog" in self.parts:
            yield {
                **shared, "method": "nearest_orthogonal_gradient", "gradient_norm": 1.2,
                "gradient_condition": 10 ** (3.2 + 0.2 * self.normal()), "gradient_rank": RANK,
                "update_norm": 0.3, "update_condition": 10 ** (0.5 + 0.05 * self.normal()),
            }  # fmt: skip
        if "olr" in self.parts:
            used = self.random.random() < 0.55
            rate = 0.1 * (1 - 0.9 * progress)
            yield {
                **shared, "method": "optimal_learning_rate", "lr": rate, "used": used,
                "eta": rate * 10 ** (-2 + 0.3 * self.normal()) if used else None,
                "cosine": (1 if used else -1) * 10 ** (-2.5 + 0.3 * self.normal()),
            }  # fmt: skip

    def error(self) -> float:
        change = sum(effect.error for effect in self.known)
        return 12.0 + change + 0.5 * float(self.shared[0]) + 0.12 * self.normal()

    def result(self) -> dict[str, Any]:
        test, shares = self.error(), {}
        if self.treatments:
            shares = {"root": 0.06 + 0.002 * self.normal(), "condition_monitor": 0.012}
            shares |= {"nearest_orthogonal_gradient": 0.011} if "nog" in self.parts else {}
            shares |= {"optimal_learning_rate": 0.004} if "olr" in self.parts else {}
            shares |= {"orthogonal_penalty": 0.008} if "ol" in self.parts else {}
        return {
            "validation_accuracy": 1 - (test - 0.3) / 100, "test_accuracy": 1 - test / 100,
            "validation_loss": 0.5, "test_loss": 0.52, "seconds": 30.0, "shares": shares,
            "step_ms_final": 40 + 3 * len(self.treatments) + 0.2 * self.normal(),
            "weight_norm": 4.0 * math.sqrt(self.scale(1.0)), "steps": self.steps,
            "settings": {"lr": 0.1, "treatments": self.treatments},
            "trainable": 700_000, "stored": 700_000, "dense": 700_000,
        }  # fmt: skip


# --- single seeds and variants, without files -----------------------------------------------------


def seed_run(
    seed: int, *, what: str = "covariance", methods: Sequence[Mapping[str, Any]] = (),
    result: Mapping[str, Any] | None = None, **fields: Sequence[float | None],
) -> SeedRun:  # fmt: skip
    """A seed whose condition records hold the given values, one per step."""
    count = max(map(len, fields.values()), default=0)
    rows = [
        {"step": step, "what": what, "layer": "bn1", "rank": RANK, "size": SIZE, "ridge": RIDGE}
        | {key: values[step] for key, values in fields.items()}
        for step in range(count)
    ]
    return SeedRun(seed, {"condition": rows, "method": list(methods), "step": []}, result or {})


def treated(
    name: str, errors: Sequence[float], *, first: int = 0, title: str = "",
    methods: Sequence[Mapping[str, Any]] = (), **ends: Sequence[float | None],
) -> Variant:  # fmt: skip
    """A variant with these test errors, and these conditions at the end, one per seed."""
    treatments = ("root", *(part for part in name.split("-") if part != "root")) if name else ()
    seeds = tuple(
        seed_run(
            first + index,
            methods=methods,
            result={"test_accuracy": 1 - error / 100, "validation_accuracy": 1 - error / 100},
            **{key: [values[index]] for key, values in ends.items()},
        )
        for index, error in enumerate(errors)
    )
    shown = name or "baseline"
    return Variant(shown, title or shown, "", seeds, len(seeds), treatments)
