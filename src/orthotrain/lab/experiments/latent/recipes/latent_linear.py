"""The linear EigenGAN on Gaussian data: what each treatment does to a latent weight, solvable."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.latent.config import (
    AdversarialConfig,
    GeneratorConfig,
    LatentConfig,
    LatentDataConfig,
    LatentRecordConfig,
    LatentRun,
    LatentVariant,
    latent_variants,
)
from orthotrain.lab.experiments.treatments import HESSIAN, OROJAR, VP
from orthotrain.lab.run.experiment import Experiment

# The rivals are for images: a linear generator has no Hessian, and the VP network convolves.
_FOR_IMAGES: Final = {row.name for row in (HESSIAN, OROJAR, VP)}


def _variants(config: LatentRun) -> tuple[LatentVariant, ...]:
    return tuple(v for v in latent_variants(config) if not _FOR_IMAGES & set(v.treatments))


_CPU: Final = LatentRun(
    data=LatentDataConfig(name="gaussian", image_size=64, batch_size=64),
    model=GeneratorConfig(kind="linear", latent_dim=6),
    # The critic learns four times as fast: without it the generator circles around its optimum.
    optim=AdversarialConfig(steps=2_000, lr=1e-3, discriminator_lr=4e-3, r1=0.05),
    latent=LatentConfig(penalty=0.25, sgd_lr=3e-2, monitor_every_steps=20),
    record=LatentRecordConfig(
        log_every_steps=50, sample_every_steps=500, checkpoint_every_steps=1_000
    ),
    seeds=(0, 1, 2, 3, 4),
    device="cpu",
)

LATENT_LINEAR = Experiment(
    name="latent-linear",
    title="Linear EigenGAN on Gaussian data with known directions",
    config={
        "smoke": replace(
            _CPU,
            data=replace(_CPU.data, image_size=16),
            optim=replace(_CPU.optim, steps=12),
            latent=replace(_CPU.latent, monitor_every_steps=3),
            record=LatentRecordConfig(
                log_every_steps=3, sample_every_steps=6, checkpoint_every_steps=6
            ),
            seeds=(0,),
        ),
        "cpu": _CPU,
        # Nothing is gained by a larger size: the same, long enough to see where it ends.
        "full": replace(_CPU, optim=replace(_CPU.optim, steps=10_000)),
    },
    variants=_variants,
    build="orthotrain.lab.experiments.latent.linear:build",
    page="orthotrain.lab.experiments.latent.page:PAGE",
)
