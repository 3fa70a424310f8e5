"""Mini ViT on CIFAR-10; ``full`` has the settings found in the authors' code."""

from __future__ import annotations

from dataclasses import replace

from orthotrain.lab.experiments.classifier.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RecordConfig,
)
from orthotrain.lab.experiments.lowrank.config import LowRankRun, lowrank_variants
from orthotrain.lab.experiments.lowrank.recipes.digits_minivit import PUBLISHED
from orthotrain.lab.experiments.lowrank.tuning import tuned_settings, vit_search
from orthotrain.lab.run.experiment import Experiment

# The authors' mini ViT: patch 8, depth 6, 6 heads, width 768; batch 1024, 300 epochs, AdamW
# 3e-4 to 1e-5, warm-up 10 epochs, weight decay 0.01, clip 5. Which augmentation they used is
# not known; ours is the usual crop and flip.
_FULL = LowRankRun(
    data=DataConfig(name="cifar10", batch_size=1024, crop_padding=4, flip=True),
    model=ModelConfig(patch_size=8, width=768, depth=6, heads=6, mlp_ratio=4.0),
    optim=OptimConfig(
        epochs=300,
        lr=3e-4,
        min_lr=1e-5,
        warmup_fraction=10 / 300,
        weight_decay=0.01,
        clip_norm=5.0,
    ),
    paper=PUBLISHED,
    tuned=tuned_settings("cifar10_minivit_tuned.json"),
    record=RecordConfig(
        log_every_steps=20,
        eval_every_epochs=5,
        stability_every_epochs=5,
        checkpoint_every_epochs=20,
    ),
    precision="bfloat16",
)

# The authors searched from 5e-5 to 1e-3 at width 768; a narrower network learns at larger rates.
SEARCH = vit_search(lr=(5e-5, 1e-2), seeds=(100,), within=0.02)

CIFAR10_MINIVIT = Experiment(
    name="cifar10-minivit",
    title="Mini ViT on CIFAR-10 (JPEG copy)",
    config={
        "smoke": replace(
            _FULL,
            data=replace(_FULL.data, batch_size=32, train_limit=320),
            model=ModelConfig(patch_size=8, width=24, depth=2, heads=2),
            optim=replace(_FULL.optim, epochs=4, lr=1e-3),
            record=RecordConfig.every(steps=4, epochs=1),
            seeds=(0,),
            device="cpu",
            precision="float32",
        ),
        # Sized for three to four minutes per training on one core: a fifth of the images, a
        # narrower and shallower network, few epochs. The rate is the best of three for the narrow
        # network, too: benchmarks/results/minivit_rates.txt.
        "cpu": replace(
            _FULL,
            data=replace(_FULL.data, batch_size=128, train_limit=10_000),
            model=ModelConfig(patch_size=8, width=192, depth=3, heads=6),
            optim=replace(_FULL.optim, epochs=8, lr=1e-3, min_lr=1e-3 / 30),
            record=RecordConfig(
                log_every_steps=10,
                eval_every_epochs=1,
                stability_every_epochs=1,
                checkpoint_every_epochs=2,
            ),
            seeds=(0, 1, 2),
            device="cpu",
            precision="float32",
        ),
        "full": _FULL,
    },
    variants=lowrank_variants,
    build="orthotrain.lab.experiments.lowrank.build:build",
    page="orthotrain.lab.experiments.lowrank.page:PAGE",
    search="orthotrain.lab.experiments.lowrank.recipes.cifar10_minivit:SEARCH",
)
