"""From a configuration to the two players, their optimizers and the methods of one training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from orthotrain.diagnostics.conditioning import ConditionMonitor
from orthotrain.lab.experiments.latent.config import (
    AdversarialConfig,
    GeneratorConfig,
    LatentRun,
    LatentVariant,
)
from orthotrain.lab.experiments.treatments import Settings, methods_of
from orthotrain.lab.run.restore import rebuilds
from orthotrain.layers import EigenSubspace
from orthotrain.linalg import orthonormality
from orthotrain.methods.protocol import Method

if TYPE_CHECKING:
    from orthotrain.models.eigengan import EigenGenerator
    from orthotrain.models.linear_gan import LinearGenerator
    from orthotrain.models.simple_gan import SimpleGenerator

    Generator = LinearGenerator | EigenGenerator | SimpleGenerator
else:  # only the generator that is trained is loaded
    Generator = nn.Module

#: Pattern of the latent weight of each generator.
LATENT_WEIGHT: Final = {"linear": "*.u", "eigen": "*.u", "simple": "latent"}


def build_players(
    model: GeneratorConfig, *, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Generator, nn.Module]:
    """Fresh generator and discriminator; the same draw for every variant.

    Args:
        model: What they are.
        shape: Of one sample.
        generator: Source of the initial weights.

    Raises:
        ConfigError: Sizes that do not fit each other.
    """
    match model.kind:
        case "linear":
            from orthotrain.models.linear_gan import LinearGenerator, QuadraticCritic

            return (
                LinearGenerator(shape[0], latent_dim=model.latent_dim, generator=generator),
                QuadraticCritic(shape[0]),
            )
        case "eigen":
            from orthotrain.models.eigengan import EigenDiscriminator, EigenGenerator

            channels, size = shape[0], shape[1]
            return (
                EigenGenerator(
                    size,
                    noise_dim=model.noise_dim,
                    num_basis=model.latent_dim,
                    base_channels=model.base_channels,
                    channels=channels,
                    generator=generator,
                ),
                EigenDiscriminator(
                    size,
                    base_channels=model.base_channels,
                    channels=channels,
                    generator=generator,
                ),
            )
        case "simple":
            from orthotrain.models.simple_gan import SimpleDiscriminator, SimpleGenerator

            channels, size = shape[0], shape[1]
            return (
                SimpleGenerator(
                    size, latent_dim=model.latent_dim, channels=channels, generator=generator
                ),
                SimpleDiscriminator(size, channels=channels, generator=generator),
            )
        case _:
            assert_never(model.kind)


def build_optimizers(
    generator: Generator, discriminator: nn.Module, config: LatentRun, variant: LatentVariant
) -> tuple[Optimizer, ...]:
    """Those of the generator, of which the first has the latent weight; the discriminator's last.

    Adam for all, and where the variant asks for it SGD for the latent weight alone: with SGD for
    all of an EigenGAN every image turns black, at rates from .03 to 5.
    """
    optim = config.optim
    rate = optim.lr * variant.lr_factor
    discriminator_lr = optim.lr if optim.discriminator_lr is None else optim.discriminator_lr
    last = Adam(discriminator.parameters(), lr=discriminator_lr, betas=optim.betas)
    if variant.optimizer == "adam":
        return Adam(generator.parameters(), lr=rate, betas=optim.betas), last
    latent = [getattr(layer, name) for layer, name in latent_layers(generator)]
    held = {id(weight) for weight in latent}
    rest = [weight for weight in generator.parameters() if id(weight) not in held]
    return (
        SGD(latent, lr=config.latent.sgd_lr * variant.lr_factor),
        Adam(rest, lr=rate, betas=optim.betas),
        last,
    )


def build_schedulers(
    optimizers: Iterable[Optimizer], config: AdversarialConfig
) -> tuple[LambdaLR, ...]:
    """Constant, then a line to zero at the end of the run."""
    flat = round(config.constant_fraction * config.steps)

    def factor(step: int) -> float:
        return 1.0 if step < flat else (config.steps - step) / max(1, config.steps - flat)

    return tuple(LambdaLR(optimizer, factor) for optimizer in optimizers)


def build_methods(variant: LatentVariant, config: LatentRun) -> list[Method]:
    """What is attached to the generator: the treatments, and the watcher of every variant."""
    weight = LATENT_WEIGHT[config.model.kind]
    every = config.latent.monitor_every_steps
    settings = Settings(penalty=config.latent.penalty, record_every=every)
    return [
        *methods_of(variant.treatments, weight=weight, settings=settings),
        ConditionMonitor(weight, every_steps=every, covariances=()),
    ]


@rebuilds
def generator_from(*, model: Mapping[str, Any], shape: Sequence[int]) -> Generator:
    """The generator that a checkpoint tells of, with fresh weights, in evaluation mode."""
    random = torch.Generator().manual_seed(0)
    generator, _ = build_players(GeneratorConfig(**model), shape=tuple(shape), generator=random)
    return generator.requires_grad_(False).eval()


def latent_layers(generator: nn.Module) -> list[tuple[nn.Module, str]]:
    """The layers that hold the latent weights, each with the weight's name."""
    return [(layer, weight) for _, layer, weight in _latent(generator)]


def latent_weights(generator: nn.Module) -> list[tuple[str, Tensor]]:
    """The latent weights as matrices with one row per coordinate, and the names of their layers."""
    return [(n, getattr(layer, w).detach().flatten(1)) for n, layer, w in _latent(generator)]


def _latent(generator: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Every subspace; in a generator without any its first layer, ``latent``."""
    subspaces: list[tuple[str, nn.Module, str]] = [
        (name, layer, "u")
        for name, layer in generator.named_modules()
        if isinstance(layer, EigenSubspace)
    ]
    return subspaces or [("latent", generator.get_submodule("latent"), "weight")]


def gram_deviation(weight: Float[Tensor, "k n"]) -> float:
    """``|W W^T - 1|_F``: how far the rows are from orthonormal ones, in float64."""
    return float(orthonormality.gram_deviation(weight.double()).norm())
