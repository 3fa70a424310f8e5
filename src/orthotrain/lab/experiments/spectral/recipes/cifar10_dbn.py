"""Decorrelated batch norm behind the stem of a ResNet on CIFAR-10, and what repairs it.

``full`` has the settings of the authors' code; ``--model.depth 50`` is their other network.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.classifier.config import (
    DataConfig,
    RecordConfig,
    ResNetConfig,
    SgdConfig,
)
from orthotrain.lab.experiments.spectral.config import (
    SpectralConfig,
    SpectralRun,
    long_variants,
    spectral_variants,
)
from orthotrain.lab.run.experiment import Experiment

_SPECTRAL: Final = SpectralConfig(layer="whitening", ridge=1e-2, monitor_every_steps=50)

_FULL = SpectralRun(
    data=DataConfig(name="cifar10", batch_size=128, crop_padding=4, flip=True),
    model=ResNetConfig(depth=18, width=64, stem_channels=64, stem="cifar"),
    # 350 epochs, a tenth of the learning rate after 100, 200 and 300.
    optim=SgdConfig(
        epochs=350,
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        decay_at=(100 / 350, 200 / 350, 300 / 350),
    ),
    spectral=_SPECTRAL,
    record=RecordConfig.every(steps=50, epochs=5),
)

CIFAR10_DBN = Experiment(
    name="cifar10-dbn",
    title="ResNet with decorrelated batch norm on CIFAR-10 (JPEG copy)",
    config={
        "smoke": replace(
            _FULL,
            data=replace(_FULL.data, batch_size=32, train_limit=160),
            model=ResNetConfig(depth=18, width=2, stem_channels=16, stem="cifar"),
            optim=replace(_FULL.optim, epochs=2),
            spectral=replace(_SPECTRAL, monitor_every_steps=2),
            record=RecordConfig.every(steps=2, epochs=1),
            seeds=(0,),
            device="cpu",
        ),
        # An eighth of the width, but all 64 channels behind the stem: with 27 inputs their
        # covariance has the rank deficiency of the published network. The learning rate falls at
        # the same shares of the run.
        "cpu": replace(
            _FULL,
            data=replace(_FULL.data, batch_size=64, train_limit=2_000),
            model=replace(_FULL.model, width=8),
            optim=replace(_FULL.optim, epochs=8),
            spectral=replace(_SPECTRAL, monitor_every_steps=5),
            record=RecordConfig(
                log_every_steps=5,
                eval_every_epochs=4,
                stability_every_epochs=1,
                checkpoint_every_epochs=2,
            ),
            device="cpu",
        ),
        # Long enough to speak of errors: hours per variant on a core. A step takes 5 times as long
        # with an orthogonal stem.
        "cpu-long": replace(
            _FULL,
            data=replace(_FULL.data, batch_size=64, train_limit=20_000),
            model=replace(_FULL.model, width=16),
            optim=replace(_FULL.optim, epochs=15),
            spectral=replace(_SPECTRAL, monitor_every_steps=25),
            record=RecordConfig.every(steps=25, epochs=1),
            variants=long_variants(_FULL),
            device="cpu",
        ),
        "full": _FULL,
    },
    variants=spectral_variants,
    build="orthotrain.lab.experiments.spectral.build:build",
    page="orthotrain.lab.experiments.spectral.page:PAGE",
)
