"""Generators of sprites and faces: what NOG, OLR and their rivals do to what a latent means.

``full`` has the published settings where they are known, except for the number of steps: EigenGAN
was trained for 500,000. ``cpu`` is 16 pixels on two cores.
"""

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
)
from orthotrain.lab.experiments.recipe import Recipe

# Every treatment, the rivals, NOG and nothing at three learning rates, and OLR with SGD.
_VARIANTS: Final = (
    *("none", "nog", "olr", "ol", "nog-olr", "retraction", "nog-retraction", "nog-update"),
    *("hessian", "orojar", "vp"),
    *("none-lr0.33", "none-lr3", "nog-lr0.33", "nog-lr3", "none-sgd", "olr-sgd"),
)
_FIVE: Final = (0, 1, 2, 3, 4)
_EIGEN: Final = LatentRun(
    recipe="sprites-eigengan",
    scale="full",
    data=LatentDataConfig(name="sprites", image_size=64, batch_size=128),
    # Without noise: with it the factors go there, and the coordinates are decoration.
    model=GeneratorConfig(kind="eigen", latent_dim=6, noise_dim=0, base_channels=16),
    optim=AdversarialConfig(
        steps=30_000, lr=2e-4, betas=(0.5, 0.99), loss="hinge", r1=10.0, r1_every=16
    ),
    # The published weights of the rivals are of a simple GAN. With those of the Hessian penalty and
    # the VP loss an EigenGAN makes images far from real ones, so they are a hundredth and a tenth.
    # Of .1 and 1 for SGD, tried on one seed at 16 pixels, 1 turns the directions ten times as far
    # from orthonormal, at the same fidelity.
    latent=LatentConfig(
        penalty=0.25, hessian=1e-5, orojar=1e-6, vp=0.01, sgd_lr=1.0, monitor_every_steps=100
    ),
    record=LatentRecordConfig(
        log_every_steps=100, sample_every_steps=2_000, checkpoint_every_steps=1_000
    ),
    variants=_VARIANTS,
    seeds=_FIVE,
)
_SIMPLE: Final = replace(
    _EIGEN,
    recipe="sprites-simplegan",
    model=GeneratorConfig(kind="simple", latent_dim=6),
    # Constant for half of the run, then a line to zero.
    optim=AdversarialConfig(
        steps=30_000,
        lr=2e-4,
        betas=(0.5, 0.999),
        loss="non_saturating",
        gradient_penalty=10.0,
        constant_fraction=0.5,
    ),
    latent=LatentConfig(penalty=0.25, hessian=1e-3, orojar=1e-11, vp=0.1, monitor_every_steps=100),
)


# Photographs, with DiffAugment: there are fewer of them than of sprites.
_EIGEN_FACES: Final = replace(
    _EIGEN,
    recipe="faces-eigengan",
    data=replace(_EIGEN.data, name="faces", batch_size=64),
    model=replace(_EIGEN.model, noise_dim=512),
    optim=replace(_EIGEN.optim, lr=1e-4, augment=True),
)
_SIMPLE_FACES: Final = replace(
    _SIMPLE,
    recipe="faces-simplegan",
    data=replace(_SIMPLE.data, name="faces"),
    # As many coordinates as were published at 128 pixels.
    model=replace(_SIMPLE.model, latent_dim=30),
    optim=replace(_SIMPLE.optim, loss="wasserstein", augment=True),
    latent=replace(_SIMPLE.latent, orojar=1e-6),
)


def _on_a_cpu(config: LatentRun) -> LatentRun:
    """16 pixels, half of the channels, 1,500 steps at five times the learning rate."""
    return replace(
        config,
        scale="cpu",
        data=replace(config.data, image_size=16, batch_size=64),
        model=replace(config.model, base_channels=8),
        optim=replace(config.optim, steps=1_500, lr=1e-3),
        latent=replace(config.latent, monitor_every_steps=25),
        record=LatentRecordConfig(
            log_every_steps=25, sample_every_steps=250, checkpoint_every_steps=250
        ),
        seeds=(0, 1, 2),
        device="cpu",
    )


def _to_see_it_run(config: LatentRun) -> LatentRun:
    return replace(
        _on_a_cpu(config),
        scale="smoke",
        data=replace(config.data, image_size=16, batch_size=4),
        model=replace(config.model, base_channels=2, latent_dim=2),
        optim=replace(config.optim, steps=4),
        latent=replace(config.latent, monitor_every_steps=2),
        record=LatentRecordConfig(
            log_every_steps=1, sample_every_steps=2, checkpoint_every_steps=2
        ),
        variants=("none", "nog-olr"),
        seeds=(0,),
    )


def _recipe(config: LatentRun, title: str) -> Recipe:
    scaled = (_to_see_it_run(config), _on_a_cpu(config), config)
    return Recipe(name=config.recipe, title=title, scales={one.scale: one for one in scaled})


SPRITES_EIGENGAN = _recipe(_EIGEN, "EigenGAN on sprites (re-rendered)")
SPRITES_SIMPLEGAN = _recipe(_SIMPLE, "Simple GAN on sprites (re-rendered)")
FACES_EIGENGAN = _recipe(_EIGEN_FACES, "EigenGAN on faces")
FACES_SIMPLEGAN = _recipe(_SIMPLE_FACES, "Simple GAN on faces")
