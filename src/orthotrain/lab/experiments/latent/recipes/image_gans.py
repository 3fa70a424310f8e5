"""Generators of sprites and faces: what NOG, OLR and their rivals do to what a latent means.

``full`` has the published settings where they are known, except for the number of steps: EigenGAN
was trained for 500,000. ``cpu`` is 16 pixels on two cores, ``night`` what two cores do in a night:
EigenGAN on sprites in color at 32 pixels and on faces at 64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from orthotrain.lab.experiments.latent.config import (
    BASELINE,
    AdversarialConfig,
    GeneratorConfig,
    LatentConfig,
    LatentDataConfig,
    LatentRecordConfig,
    LatentRun,
    latent_variants,
)
from orthotrain.lab.experiments.treatments import NOG, OL, OLR, name_of
from orthotrain.lab.run.config import Scale
from orthotrain.lab.run.experiment import Experiment

# Every treatment, the rivals, NOG and the baseline at three learning rates, and with SGD the
# baseline and OLR.
_VARIANTS: Final = tuple(
    variant.name
    for variant in latent_variants(LatentRun())
    if variant.optimizer == "adam" or variant.treatments in ((), (OLR.name,))
)
_FIVE: Final = (0, 1, 2, 3, 4)
_EIGEN: Final = LatentRun(
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
    data=replace(_EIGEN.data, name="faces", batch_size=64),
    model=replace(_EIGEN.model, noise_dim=512),
    optim=replace(_EIGEN.optim, lr=1e-4, augment=True),
)
_SIMPLE_FACES: Final = replace(
    _SIMPLE,
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


def _in_a_night(config: LatentRun, *, image_size: int, steps: int) -> LatentRun:
    """Half of the channels, one seed of the baseline, NOG, OLR and OL: for the eye alone."""
    return replace(
        config,
        data=replace(
            config.data, image_size=image_size, batch_size=64, color=config.data.name == "sprites"
        ),
        model=replace(config.model, base_channels=8),
        optim=replace(config.optim, steps=steps, lr=5e-4),
        record=replace(config.record, checkpoint_every_steps=500),
        variants=(BASELINE, *(row.name for row in (NOG, OLR, OL))),
        seeds=(0,),
        device="cpu",
    )


def _to_see_it_run(config: LatentRun) -> LatentRun:
    return replace(
        _on_a_cpu(config),
        data=replace(config.data, image_size=16, batch_size=4),
        model=replace(config.model, base_channels=2, latent_dim=2),
        optim=replace(config.optim, steps=4),
        latent=replace(config.latent, monitor_every_steps=2),
        record=LatentRecordConfig(
            log_every_steps=1, sample_every_steps=2, checkpoint_every_steps=2
        ),
        variants=(BASELINE, name_of((NOG, OLR))),
        seeds=(0,),
    )


def _experiment(
    name: str, title: str, full: LatentRun, *, night: LatentRun | None = None
) -> Experiment:
    scales: dict[Scale, LatentRun] = {
        "smoke": _to_see_it_run(full),
        "cpu": _on_a_cpu(full),
        **({} if night is None else {"night": night}),
        "full": full,
    }
    return Experiment(
        name=name,
        title=title,
        config=scales,
        variants=latent_variants,
        build="orthotrain.lab.experiments.latent.images:build",
        page="orthotrain.lab.experiments.latent.page:PAGE",
    )


SPRITES_EIGENGAN = _experiment(
    "sprites-eigengan",
    "EigenGAN on sprites (re-rendered)",
    _EIGEN,
    night=_in_a_night(_EIGEN, image_size=32, steps=12_000),
)
SPRITES_SIMPLEGAN = _experiment("sprites-simplegan", "Simple GAN on sprites (re-rendered)", _SIMPLE)
FACES_EIGENGAN = _experiment(
    "faces-eigengan",
    "EigenGAN on faces",
    _EIGEN_FACES,
    night=_in_a_night(_EIGEN_FACES, image_size=64, steps=8_000),
)
FACES_SIMPLEGAN = _experiment("faces-simplegan", "Simple GAN on faces", _SIMPLE_FACES)
