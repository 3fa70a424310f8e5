"""Adversarial runs so small that a test can train them, kill them and train them again."""

from dataclasses import replace

from orthotrain.lab.experiments.latent import images, linear
from orthotrain.lab.experiments.latent.config import (
    AdversarialConfig,
    GeneratorConfig,
    LatentConfig,
    LatentDataConfig,
    LatentRecordConfig,
    LatentRun,
    latent_variants,
)

STEPS = 8
LINEAR = LatentRun(
    recipe="tiny",
    scale="smoke",
    data=LatentDataConfig(name="gaussian", image_size=12, batch_size=8),
    model=GeneratorConfig(kind="linear", latent_dim=6),
    optim=AdversarialConfig(steps=STEPS, lr=1e-2, r1=0.1, r1_every=2),
    latent=LatentConfig(monitor_every_steps=2),
    record=LatentRecordConfig(log_every_steps=1, sample_every_steps=4, checkpoint_every_steps=3),
    seeds=(0,),
    device="cpu",
)
EIGEN = replace(
    LINEAR,
    data=LatentDataConfig(name="sprites", image_size=16, batch_size=4),
    model=GeneratorConfig(kind="eigen", latent_dim=2, base_channels=2),
    optim=replace(LINEAR.optim, loss="hinge", augment=True),
)
SIMPLE = replace(
    EIGEN,
    model=GeneratorConfig(kind="simple", latent_dim=3),
    optim=replace(LINEAR.optim, loss="wasserstein", r1=0.0, gradient_penalty=10.0),
)


def variant_of(name):
    return next(variant for variant in latent_variants(LINEAR) if variant.name == name)


def build(config):
    return linear.build if config.model.kind == "linear" else images.build
