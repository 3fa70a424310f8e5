"""Every rival on the recipe ``cifar10-minivit``: the same images, network, loop and budget."""

from __future__ import annotations

from dataclasses import replace

from orthotrain.lab.experiments.classifier.config import ModelConfig
from orthotrain.lab.experiments.lowrank.config import LowRankRun
from orthotrain.lab.experiments.lowrank.recipes.cifar10_minivit import CIFAR10_MINIVIT
from orthotrain.lab.experiments.rivals.config import ViTRivals
from orthotrain.lab.experiments.rivals.variants import rival_search, rival_variants
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.space import Aim

_BASE = CIFAR10_MINIVIT.config["cpu"]
assert isinstance(_BASE, LowRankRun)
# A narrower network and fewer epochs than cifar10-minivit: a minute and a half per training on a
# shared core.
_CPU = ViTRivals.of(
    _BASE,
    model=ModelConfig(patch_size=8, width=128, depth=3, heads=4),
    optim=replace(_BASE.optim, epochs=5, lr=2e-3),
)

SEARCH = rival_search((0.5, 1.0, 2.0, 4.0), Aim("validation_loss"))

CIFAR10_MINIVIT_RIVALS = Experiment(
    name="cifar10-minivit-rivals",
    title="Rivals: mini ViT on CIFAR-10 (JPEG copy)",
    config={
        "smoke": ViTRivals.of(CIFAR10_MINIVIT.config["smoke"]),
        "cpu": _CPU,
        "full": ViTRivals.of(CIFAR10_MINIVIT.config["full"]),
    },
    variants=rival_variants,
    build="orthotrain.lab.experiments.rivals.build:build",
    page="orthotrain.lab.experiments.rivals.page:PAGE",
    search="orthotrain.lab.experiments.rivals.recipes.cifar10_minivit_rivals:SEARCH",
)
