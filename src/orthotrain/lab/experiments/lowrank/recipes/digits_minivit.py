"""Mini ViT on scikit-learn's digits: minutes on two CPU cores, nothing to download.

The network has the layers of the authors' CIFAR-10 mini ViT (square patches, MLP x4, no bias in
q, k and v), wide and shallow: at width 96 and 256 rows per step the matrices are so small that a
low-rank step took as long as a dense one. Optimizer and schedule are theirs, too, with times as
shares of the run; the learning rate is larger because the network is smaller.
"""

from __future__ import annotations

from dataclasses import replace

from orthotrain.lab.experiments.classifier.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RecordConfig,
)
from orthotrain.lab.experiments.lowrank.config import (
    LowRankConfig,
    LowRankRun,
    lowrank_variants,
)
from orthotrain.lab.experiments.lowrank.tuning import tuned_settings, vit_search
from orthotrain.lab.experiments.search import found_settings
from orthotrain.lab.run.experiment import Experiment

# The authors' CIFAR-10 mini ViT: d = 50 and nu = 10 of 300 epochs, beta .15, alpha .1. As
# published, every eligible layer is converted at the switch whether or not that pays.
PUBLISHED = LowRankConfig(
    delay_fraction=50 / 300,
    every_fraction=10 / 300,
    rank="rank_rtol=0.15",
    layer_fraction=0.1,
    only_if_cheaper=False,
)

_CPU = LowRankRun(
    data=DataConfig(name="digits", batch_size=128, crop_padding=1, flip=False),
    model=ModelConfig(patch_size=4, width=256, depth=2, heads=4, mlp_ratio=4.0),
    optim=OptimConfig(epochs=60, lr=2e-3, min_lr=2e-3 / 30, weight_decay=0.01, clip_norm=5.0),
    paper=PUBLISHED,
    tuned=tuned_settings("digits_minivit_tuned.json"),
    own=found_settings("lowrank", "digits_minivit_tuned.json")["own"],
    record=RecordConfig(
        log_every_steps=8,
        eval_every_epochs=2,
        stability_every_epochs=5,
        checkpoint_every_epochs=10,
    ),
    device="cpu",
)

SEARCH = vit_search(lr=(2e-4, 2e-2), seeds=(100, 101), within=0.02)

DIGITS_MINIVIT = Experiment(
    name="digits-minivit",
    title="Mini ViT on scikit-learn's handwritten digits",
    config={
        # Long enough for a switch and a rank update, short enough for a test.
        "smoke": replace(
            _CPU,
            model=ModelConfig(patch_size=4, width=16, depth=2, heads=2),
            optim=replace(_CPU.optim, epochs=4),
            record=RecordConfig.every(steps=4, epochs=1),
            seeds=(0,),
        ),
        "cpu": _CPU,
        # The same task on a network that is far too large for it, so there is much to cut.
        "full": replace(
            _CPU,
            model=ModelConfig(patch_size=4, width=192, depth=6, heads=6),
            optim=replace(_CPU.optim, epochs=150, lr=1e-3, min_lr=1e-3 / 30),
            own={},
            seeds=(0, 1, 2, 3, 4),
        ),
    },
    variants=lowrank_variants,
    build="orthotrain.lab.experiments.lowrank.build:build",
    page="orthotrain.lab.experiments.lowrank.page:PAGE",
    search="orthotrain.lab.experiments.lowrank.recipes.digits_minivit:SEARCH",
)
