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
    all_latent_variants,
)
from orthotrain.lab.experiments.recipe import Recipe

# The rivals are for images: a linear generator has no Hessian, and the VP network convolves.
_VARIANTS: Final = tuple(
    variant.name
    for variant in all_latent_variants()
    if not {"hessian", "orojar", "vp"} & set(variant.treatments)
)
_CPU: Final = LatentRun(
    recipe="latent-linear",
    scale="cpu",
    data=LatentDataConfig(name="gaussian", image_size=64, batch_size=64),
    model=GeneratorConfig(kind="linear", latent_dim=6),
    # The critic learns four times as fast: without it the generator circles around its optimum.
    optim=AdversarialConfig(steps=2_000, lr=1e-3, discriminator_lr=4e-3, r1=0.05),
    latent=LatentConfig(penalty=0.25, sgd_lr=3e-2, monitor_every_steps=20),
    record=LatentRecordConfig(
        log_every_steps=50, sample_every_steps=500, checkpoint_every_steps=1_000
    ),
    variants=_VARIANTS,
    seeds=(0, 1, 2, 3, 4),
    device="cpu",
)

LATENT_LINEAR = Recipe(
    name="latent-linear",
    title="Linear EigenGAN on Gaussian data with known directions",
    scales={
        "smoke": replace(
            _CPU,
            scale="smoke",
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
        "full": replace(_CPU, scale="full", optim=replace(_CPU.optim, steps=10_000)),
    },
)
