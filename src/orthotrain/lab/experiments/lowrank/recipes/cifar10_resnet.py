"""ResNet-18 on CIFAR-10, with the low-rank settings that the authors' mini ViT has.

``full`` is the usual network for images of 32 pixels: a 3x3 stem without pooling. The smaller
scales have a stem with stride 2, which takes a quarter of the time.
"""

from __future__ import annotations

from dataclasses import replace

from orthotrain.lab.experiments.branches.variants import DENSE
from orthotrain.lab.experiments.classifier.config import (
    DataConfig,
    OptimConfig,
    RecordConfig,
    ResNetConfig,
)
from orthotrain.lab.experiments.lowrank.config import HALF, PAPER
from orthotrain.lab.experiments.lowrank.image_config import ResNetRun, image_variants
from orthotrain.lab.experiments.lowrank.recipes.digits_minivit import PUBLISHED
from orthotrain.lab.experiments.search import listed_rates
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.space import Aim

_RATE = 2e-3
_FULL = ResNetRun(
    data=DataConfig(name="cifar10", batch_size=128, crop_padding=4, flip=True),
    model=ResNetConfig(),
    optim=OptimConfig(
        epochs=100,
        lr=_RATE,
        min_lr=_RATE / 100,
        warmup_fraction=0.05,
        weight_decay=0.05,
        clip_norm=5.0,
    ),
    paper=PUBLISHED,
    record=RecordConfig(
        log_every_steps=20,
        eval_every_epochs=1,
        stability_every_epochs=5,
        checkpoint_every_epochs=5,
    ),
)

# About ten minutes of processor time per dense training (94 s per epoch on one thread): enough
# images and steps for an accuracy that means something.
_LONG = replace(
    _FULL,
    data=replace(_FULL.data, batch_size=64, train_limit=20_000),
    model=ResNetConfig(width=32, stem_channels=32, stem="strided"),
    optim=replace(_FULL.optim, epochs=6),
    record=RecordConfig.every(steps=20, epochs=1),
    device="cpu",
)

SEARCH = listed_rates(
    (0.5, 1.0, 2.0, 4.0), (DENSE, PAPER, f"half-{HALF}", f"narrow-{HALF}"),
    aim=Aim("validation_loss"), seeds=(100,),
)  # fmt: skip

CIFAR10_RESNET = Experiment(
    name="cifar10-resnet",
    title="ResNet-18 on CIFAR-10 (JPEG copy)",
    config={
        "smoke": replace(
            _LONG,
            data=replace(_LONG.data, batch_size=32, train_limit=320),
            model=ResNetConfig(width=8, stem_channels=8, stem="strided"),
            optim=replace(_LONG.optim, epochs=4),
            record=RecordConfig.every(steps=4, epochs=1),
            seeds=(0,),
        ),
        "cpu": replace(
            _LONG,
            data=replace(_LONG.data, train_limit=5000),
            model=ResNetConfig(width=16, stem_channels=16, stem="strided"),
        ),
        "cpu-long": _LONG,
        "full": _FULL,
    },
    variants=image_variants,
    build="orthotrain.lab.experiments.lowrank.build:build",
    page="orthotrain.lab.experiments.lowrank.page:PAGE",
    search="orthotrain.lab.experiments.lowrank.recipes.cifar10_resnet:SEARCH",
)
