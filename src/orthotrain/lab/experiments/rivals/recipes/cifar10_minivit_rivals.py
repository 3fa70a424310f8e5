"""Every rival on the recipe ``cifar10-minivit``: the same images, network, loop and budget."""

from __future__ import annotations

from dataclasses import fields, replace

from orthotrain.lab.experiments.classifier.config import ModelConfig
from orthotrain.lab.experiments.lowrank.config import LowRankRun
from orthotrain.lab.experiments.lowrank.recipes.cifar10_minivit import CIFAR10_MINIVIT
from orthotrain.lab.experiments.rivals.config import ViTRivals
from orthotrain.lab.experiments.rivals.tuning import RivalGrid
from orthotrain.lab.experiments.rivals.variants import rival_variants
from orthotrain.lab.run.config import RunConfig
from orthotrain.lab.run.experiment import Experiment


def _of(config: RunConfig, **others: object) -> ViTRivals:
    """The same run with rivals."""
    assert isinstance(config, LowRankRun)
    same = {f.name: getattr(config, f.name) for f in fields(LowRankRun)}
    return ViTRivals(**{**same, "variants": (), **others})


_BASE = CIFAR10_MINIVIT.config["cpu"]
assert isinstance(_BASE, LowRankRun)
# A narrower network and fewer epochs than cifar10-minivit: a minute and a half per training on a
# shared core.
_CPU = _of(
    _BASE,
    model=ModelConfig(patch_size=8, width=128, depth=3, heads=4),
    optim=replace(_BASE.optim, epochs=5),
    rival_rates={"dense": 2e-3},
)

GRID = RivalGrid(rates=(1e-3, 2e-3, 4e-3), seeds=(100,), field="validation_accuracy", less=False)

CIFAR10_MINIVIT_RIVALS = Experiment(
    name="cifar10-minivit-rivals",
    title="Rivals: mini ViT on CIFAR-10 (JPEG copy)",
    config={
        "smoke": _of(CIFAR10_MINIVIT.config["smoke"], rival_rates={"dense": 1e-3}),
        "cpu": _CPU,
        "full": _of(CIFAR10_MINIVIT.config["full"], rival_rates={"dense": 3e-4}),
    },
    variants=rival_variants,
    build="orthotrain.lab.experiments.rivals.build:build",
    page="orthotrain.lab.experiments.rivals.page:PAGE",
    search="orthotrain.lab.experiments.rivals.recipes.cifar10_minivit_rivals:GRID",
)
