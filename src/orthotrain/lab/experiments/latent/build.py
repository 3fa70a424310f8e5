"""From a configuration to the two players, their optimizers and the methods of one training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from typing import Final, Literal, assert_never, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from orthotrain.data._pixels import pillow
from orthotrain.data.image_sets import ImageSet, image_set
from orthotrain.data.splits import Part, random_parts
from orthotrain.data.sprite_images import SpriteImages
from orthotrain.data.sprites import Sprites
from orthotrain.diagnostics import ConditionMonitor
from orthotrain.errors import DataError
from orthotrain.extras import missing_package
from orthotrain.lab.experiments.latent.config import (
    AdversarialConfig,
    GeneratorConfig,
    LatentDataConfig,
    LatentRun,
    LatentVariant,
)
from orthotrain.lab.experiments.latent.sources import GaussianSource, ImageSource, Source
from orthotrain.layers import EigenSubspace
from orthotrain.linalg import orthonormality
from orthotrain.methods import (
    Method,
    NearestOrthogonalGradient,
    OptimalLearningRate,
    OrthogonalPenalty,
    Retraction,
)
from orthotrain.models.eigengan import EigenDiscriminator, EigenGenerator
from orthotrain.models.linear_gan import LinearGenerator, QuadraticCritic
from orthotrain.models.simple_gan import SimpleDiscriminator, SimpleGenerator

Generator = LinearGenerator | EigenGenerator | SimpleGenerator
# Which correlated sprites there are belongs to the data: every seed of a run sees the same.
_CORRELATED_SEED: Final = 20240807
# As many real images as ``evaluate`` compares at least.
_FEWEST_TEST_IMAGES: Final = 15
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
            return (
                LinearGenerator(shape[0], latent_dim=model.latent_dim, generator=generator),
                QuadraticCritic(shape[0]),
            )
        case "eigen":
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
    available: dict[str, Method] = {
        "ol": OrthogonalPenalty(weight, weight=config.latent.penalty),
        "nog": NearestOrthogonalGradient(weight, record_every=every),
        "nog-update": NearestOrthogonalGradient(weight, when="update", record_every=every),
        "olr": OptimalLearningRate(weight, record_every=every),
        "retraction": Retraction(weight, onto="polar"),
    }
    chosen = [method for name, method in available.items() if name in variant.treatments]
    return [*chosen, ConditionMonitor(weight, every_steps=every, covariances=())]


def build_source(config: LatentDataConfig, *, device: torch.device) -> Source:
    """The real samples that ``config`` names.

    Raises:
        DataError: Local data is missing or damaged, too few for scores at the end, or a package
            that its images need is missing.
    """
    if config.name == "gaussian":
        return GaussianSource.of(config.image_size, device=device)
    _require_packages(factors=config.name == "sprites")
    _require_scorable(len(build_images(config, part="test")), config)
    return ImageSource(build_images(config, part="train"), device)


def _require_scorable(count: int, config: LatentDataConfig) -> None:
    if count < _FEWEST_TEST_IMAGES:
        place = f" in {config.dir}" if config.dir else ""
        raise DataError(
            f"train: {config.name}{place} has {count} images in its test part, and scores need "
            f"{_FEWEST_TEST_IMAGES}; add images to that part"
        )


def _require_packages(*, factors: bool) -> None:
    """Say before a training of images what would stop it on its way or at its end.

    Args:
        factors: Whether its scores read true factors.

    Raises:
        MissingPackageError: Pillow, which writes samples, or scikit-learn, which DCI needs, is
            missing.
    """
    pillow("samples")
    if factors and find_spec("sklearn") is None:
        raise missing_package("train: scores of true factors", "scikit-learn")


def build_images(config: LatentDataConfig, *, part: Part) -> ImageSet:
    """One part of the images that ``config`` names; sprites without color are gray.

    Raises:
        DataError: Local data is missing or damaged.
    """
    assert config.name != "gaussian"
    if (sprites := build_sprites(config)) is not None:
        channels: Literal[1, 3] = 3 if config.color else 1
        images = image_set(sprites, part=part, channels=channels)
        if part != "train" or not config.correlation:
            return images
        index = _correlated_index(sprites, config.correlation)
        return replace(images, images=SpriteImages(sprites, index, channels=channels))
    return image_set(config.name, data=config.dir, image_size=config.image_size, part=part)


def build_sprites(config: LatentDataConfig) -> Sprites | None:
    """The grid behind the images, where they are sprites."""
    if config.name != "sprites":
        return None
    held = {} if config.orientation else {"orientation": 0}
    return Sprites(config.image_size, color=config.color, held=held)


def _correlated_index(sprites: Sprites, correlation: float) -> Int64[Tensor, " n"]:
    """As many sprites as there are, drawn with their places correlated, if of the training part."""
    count = len(sprites)
    factors = sprites.sample_factors(
        count,
        generator=torch.Generator().manual_seed(_CORRELATED_SEED),
        correlation=("x", "y", correlation),
    )
    index = sprites.index_of(factors)
    trained = torch.zeros(count, dtype=torch.bool)
    trained[random_parts(count, parts=get_args(Part), title=sprites.title)["train"]] = True
    return index[trained[index]]


def latent_layers(generator: Generator) -> list[tuple[nn.Module, str]]:
    """The layers that hold the latent weights, each with the weight's name."""
    if isinstance(generator, SimpleGenerator):
        return [(generator.latent, "weight")]
    return [(one, "u") for one in generator.modules() if isinstance(one, EigenSubspace)]


def latent_weights(generator: Generator) -> list[tuple[str, Tensor]]:
    """The latent weights as matrices with a row a coordinate, with the names of their layers."""
    if isinstance(generator, SimpleGenerator):
        return [("latent", generator.latent.weight.detach().flatten(1))]
    return [
        (name, module.u.detach())
        for name, module in generator.named_modules()
        if isinstance(module, EigenSubspace)
    ]


def gram_deviation(weight: Float[Tensor, "k n"]) -> float:
    """``|W W^T - 1|_F``: how far the rows are from orthonormal ones, in float64."""
    return float(orthonormality.gram_deviation(weight.double()).norm())
