"""The mini ViT of ``digits-minivit``, half as wide, over as many epochs as the published curve."""

from __future__ import annotations

from dataclasses import replace

from orthotrain.lab.experiments.classifier.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RecordConfig,
)
from orthotrain.lab.experiments.settling.config import SettlingRun, settling_variants
from orthotrain.lab.run.experiment import Experiment

# 100 epochs, bases compared with five epochs earlier: as published.
_CPU = SettlingRun(
    data=DataConfig(name="digits", batch_size=128, crop_padding=1, flip=False),
    model=ModelConfig(patch_size=4, width=128, depth=2, heads=4, mlp_ratio=4.0),
    optim=OptimConfig(epochs=100, lr=2e-3, min_lr=2e-3 / 300, weight_decay=0.01, clip_norm=5.0),
    record=RecordConfig(
        log_every_steps=8,
        eval_every_epochs=5,
        stability_every_epochs=5,
        checkpoint_every_epochs=25,
    ),
    device="cpu",
)

DIGITS_SETTLING = Experiment(
    name="digits-settling",
    title="Does a basis settle? Mini ViT on scikit-learn's digits",
    config={
        "smoke": replace(
            _CPU,
            model=ModelConfig(patch_size=4, width=16, depth=2, heads=2),
            optim=replace(_CPU.optim, epochs=4),
            record=RecordConfig.every(steps=4, epochs=1),
            seeds=(0,),
        ),
        "cpu": _CPU,
        "full": replace(
            _CPU,
            model=ModelConfig(patch_size=4, width=192, depth=6, heads=6),
            optim=replace(_CPU.optim, lr=1e-3, min_lr=1e-3 / 300),
            seeds=(0, 1, 2, 3, 4),
        ),
    },
    variants=settling_variants,
    build="orthotrain.lab.experiments.settling.build:build",
    page="orthotrain.lab.experiments.settling.page:PAGE",
)
