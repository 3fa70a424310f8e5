"""Householder projector after training: a rival that goes on with a trained generator."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from orthotrain.disentangle import householder_directions, householder_projector
from orthotrain.lab.experiments.latent.build import Generator, latent_layers
from orthotrain.lab.experiments.latent.config import LatentRun
from orthotrain.lab.experiments.latent.state import AdversarialState, averaged
from orthotrain.lab.experiments.latent.step import adversarial_step
from orthotrain.layers import EigenSubspace
from orthotrain.models.average import ema_of


def projected(state: AdversarialState, config: LatentRun) -> Generator:
    """The generator trained on with its latent weights held by reflections, averaged anew.

    Adam starts anew for the generator, whose parameters are others, at the learning rate of the
    run without its schedule. The singular values are all their mean, which keeps the size of the
    weight; published are ones, for layers that scale their weight beside. The scales of an
    EigenGAN go into its weights first and stay one from then on.

    Args:
        state: A finished training without methods, which is used up: both players go on.
        config: Its run; ``latent.householder_fraction`` says how many steps more.

    Source:
        Song, Zhang, Sebe and Wang (2023), arXiv:2307.08012.
    """
    optim, generator = config.optim, state.generator
    for layer, name in latent_layers(generator):
        if isinstance(layer, EigenSubspace):
            fold_scale_(layer)
        householder_projector(layer, name, scales="mean", latent_axis=0)
    trained = [p for p in generator.parameters() if p.requires_grad]
    optimizers = (Adam(trained, lr=optim.lr, betas=optim.betas), state.optimizers[-1])
    further = replace(
        state,
        average=ema_of(
            generator,
            half_life_images=optim.ema_half_life,
            batch_size=config.data.batch_size,
        ),
        optimizers=optimizers,
        schedulers=tuple(LambdaLR(one, lambda _: 1.0) for one in optimizers),
    )
    for _ in range(max(1, round(config.latent.householder_fraction * optim.steps))):
        adversarial_step(further, config)
    return averaged(further)


def projected_directions(model: Generator) -> Float[Tensor, "d d"]:
    """Directions of every latent layer, all held by reflections, each for its own coordinates."""
    turned = [householder_directions(*held).double().cpu() for held in latent_layers(model)]
    directions: Tensor = torch.block_diag(*turned)  # type: ignore[no-untyped-call]
    return directions


@torch.no_grad()
def fold_scale_(layer: EigenSubspace) -> None:
    """Put the scales of a subspace into its directions; what it computes stays."""
    layer.u.mul_(layer.scale[:, None])
    layer.scale.fill_(1.0).requires_grad_(False)
